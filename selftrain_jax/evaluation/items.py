"""One evaluated model, item by item, so that models can be compared in pairs afterwards."""

import dataclasses
import io
import pathlib

import numpy as np

from selftrain_jax.core.files import read_arrays, write_atomic

_FILE = "items.npz"


@dataclasses.dataclass(frozen=True)
class Items:
    """Everything that was measured, with one entry per item.

    Attributes:
      capability: (suite, rule) -> bool `[n]`; the rule is "acc", "acc_norm" or "acc_bytes".
      nll: text set -> (nats `[windows]`, tokens `[windows]`).
      probes: column -> `[n]`, one entry per probe: "index" (int, its place in the file), "group" (str), "offset" (int,
        -1 unknown) and the fields of `memorization.Extraction`; where asked for also "graded", "bleu" and
        "edit_similarity". Empty without probes.
      membership: attack -> float `[n]`.
      members: bool `[n]`; None where no attack was run.
      contaminated: suite -> bool `[n]`, whether the item's question with its right answer, or its good sentence, stands
        in the text that the model was trained on; empty for a model that was not trained here.
    """

    capability: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    nll: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    probes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    membership: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    members: np.ndarray | None = None
    contaminated: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def save(self, directory: pathlib.Path) -> None:
        """Writes `directory/items.npz`, whole or not at all; the directory is made when missing."""
        arrays = {f"capability/{rule}/{suite}": hits for (suite, rule), hits in self.capability.items()}
        for name, (nats, tokens) in self.nll.items():
            arrays |= {f"nats/{name}": nats, f"tokens/{name}": tokens}
        arrays |= {f"probes/{column}": values for column, values in self.probes.items()}
        arrays |= {f"membership/{attack}": values for attack, values in self.membership.items()}
        arrays |= {f"contaminated/{suite}": flags for suite, flags in self.contaminated.items()}
        if self.members is not None:
            arrays["members"] = self.members
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / _FILE, buffer.getvalue())

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
            kinds.get("contaminated", {}),
        )
