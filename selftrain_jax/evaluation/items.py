"""One evaluated model, item by item, so that models can be compared in pairs afterwards."""

import dataclasses
import json
import pathlib
from typing import Any, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import json_text, read_arrays, write_arrays
from selftrain_jax.core.settings import look

_FILE = "items.npz"
_BY_SUITE = ("contaminated", "clusters", "documents")


def cluster_numbers(labels: Sequence[Any], what: str) -> np.ndarray | None:
    """int `[n]`: equal where labels look alike, for None a number of its own; None where no two items share a label.

    Raises:
      InputError: a label that is neither a text nor a whole number; `what` names the file.
    """
    numbers: dict[Any, int] = {}
    for number, label in enumerate(labels, 1):
        if label is not None and type(label) not in (str, int):
            raise InputError(f"{what}, item {number}: cluster={label!r} must be a text or a whole number, or left out")
    names = [(number,) if label is None else look(str(label)) for number, label in enumerate(labels, 1)]
    for number, name in enumerate(names, 1):
        numbers.setdefault(name, number)
    found = [numbers[name] for name in names]
    return np.array(found) if len(numbers) < len(found) else None


@dataclasses.dataclass(frozen=True)
class Items:
    """Everything that was measured, with one entry per item.

    Attributes:
      capability: (suite, rule) -> bool `[n]`; the rule is "acc", "acc_norm" or "acc_bytes".
      nll: text set -> (nats `[windows]`, tokens `[windows]`).
      probes: column -> `[n]`, one entry per probe: "index" (int, its place in the file), "group" (str), "offset" and
        "suffix_at" (int, -1 unknown) and the fields of `memorization.Extraction`; where asked for also "graded",
        "bleu", "edit_similarity" and "common_run" (each of the first k tokens, too, as "graded/8"), "sampled_log_prob"
        (nats, of `discoverable`), "written" (ids `[n, longest]` of what greedy decoding wrote, -1 behind), and
        "cluster" (int) where probes share one. Empty without probes.
      membership: attack -> float `[n]`, NaN for what the attack leaves out.
      members: bool `[n]`; None where no attack was run.
      contaminated: suite -> bool `[n]`, whether the item's question with its right answer, or its good sentence, stands
        in the text that the model was trained on; empty for a model that was not trained here.
      clusters: suite -> int `[n]`, equal for items that are about the same and so not independent; only where some are.
      documents: text set -> int `[windows]`, the text that a window is of.
      parts: setting that names a file, such as "texts.wiki" -> {"of": fingerprint of all that it was measured with,
        "summary": figures for the manifest}; empty where parts are not to be kept.
    """

    capability: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    nll: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    probes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    membership: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    members: np.ndarray | None = None
    contaminated: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    clusters: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    documents: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def part(self, setting: str) -> "Items":
        """What was measured on the file that the setting names, such as "texts.wiki" or "probes"."""
        kind, _, name = setting.partition(".")
        parts = {setting: self.parts[setting]} if setting in self.parts else {}
        if kind == "probes":
            return Items(probes=self.probes, membership=self.membership, members=self.members, parts=parts)

        def own(found: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in found.items() if key == name}

        if kind == "texts":
            return Items(nll=own(self.nll), documents=own(self.documents), parts=parts)
        capability = {key: hits for key, hits in self.capability.items() if key[0] == name}
        return Items(capability, contaminated=own(self.contaminated), clusters=own(self.clusters), parts=parts)

    def __or__(self, other: "Items") -> "Items":
        """Both, of which each holds other parts."""
        mine, others = vars(self), vars(other)
        both = {name: mine[name] | others[name] for name in mine if name != "members"}
        return Items(**both, members=self.members if other.members is None else other.members)

    def save(self, directory: pathlib.Path) -> None:
        """Writes `directory/items.npz`, whole or not at all; the directory is made when missing."""
        arrays = {f"capability/{rule}/{suite}": hits for (suite, rule), hits in self.capability.items()}
        for name, (nats, tokens) in self.nll.items():
            arrays |= {f"nats/{name}": nats, f"tokens/{name}": tokens}
        arrays |= {f"probes/{column}": values for column, values in self.probes.items()}
        arrays |= {f"membership/{attack}": values for attack, values in self.membership.items()}
        for kind in _BY_SUITE:
            arrays |= {f"{kind}/{name}": values for name, values in getattr(self, kind).items()}
        if self.members is not None:
            arrays["members"] = self.members
        if self.parts:
            arrays["parts"] = np.array(json_text(self.parts))
        directory.mkdir(parents=True, exist_ok=True)
        write_arrays(directory / _FILE, arrays)

    @classmethod
    def earlier(cls, directory: pathlib.Path) -> "Items":
        """What an earlier measurement left in `directory`; nothing where there is none, or none that can be read."""
        try:
            return cls.load(directory) if (directory / _FILE).is_file() else cls()
        except InputError:
            return cls()

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Items":
        """What `save` left in `directory`."""
        kinds: dict[str, dict[str, np.ndarray]] = {}
        for key, array in read_arrays(directory / _FILE, "measured items").items():
            kind, _, name = key.partition("/")
            kinds.setdefault(kind, {})[name] = array
        capability = {}
        for name, hits in kinds.get("capability", {}).items():
            rule, _, suite = name.partition("/")
            capability[suite, rule] = hits
        nats, tokens = kinds.get("nats", {}), kinds.get("tokens", {})
        return cls(
            capability,
            {name: (nats[name], tokens[name]) for name in nats},
            kinds.get("probes", {}),
            kinds.get("membership", {}),
            kinds.get("members", {}).get(""),
            *(kinds.get(kind, {}) for kind in _BY_SUITE),
            json.loads(str(kinds["parts"][""])) if "parts" in kinds else {},
        )
