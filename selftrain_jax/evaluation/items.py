"""What was measured on one model, item by item, so that models can be compared in pairs afterwards."""

import dataclasses
import io
import json
import os
import pathlib

import numpy as np

from selftrain_jax.core.files import write_atomic


@dataclasses.dataclass(frozen=True)
class Items:
    """One evaluated model, item by item.

    Attributes:
      capability: (suite, rule) -> bool `[n]`.
      nll: text set -> (nats, tokens), each of every window.
      probes: columns by name, one entry a probe: "exact", "first_mismatch", "token_share", "strength", "log_prob",
        "least_margin", "length", "group" (str), "offset" (-1: unknown), "index" (its place in the file); where asked
        for "graded", "bleu", "edit_similarity".
      membership: attack -> float `[n]`.
      members: bool `[n]`; None without attacks.
    """

    capability: dict[tuple[str, str], np.ndarray]
    nll: dict[str, tuple[np.ndarray, np.ndarray]]
    probes: dict[str, np.ndarray]
    membership: dict[str, np.ndarray]
    members: np.ndarray | None

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `items.npz`, atomically."""
        arrays = {("capability", *key): values for key, values in self.capability.items()}
        arrays |= {("nll", name): np.stack(pair) for name, pair in self.nll.items()}
        arrays |= {("probes", name): values for name, values in self.probes.items()}
        arrays |= {("membership", name): values for name, values in self.membership.items()}
        arrays |= {} if self.members is None else {("members",): self.members}
        buffer = io.BytesIO()
        np.savez(buffer, *arrays.values(), keys=np.array(json.dumps(list(arrays))))
        write_atomic(pathlib.Path(directory) / "items.npz", buffer.getvalue())

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Items":
        found: dict[str, dict] = {name: {} for name in ("capability", "nll", "probes", "membership", "members")}
        with np.load(pathlib.Path(directory) / "items.npz") as arrays:
            for i, (field, *key) in enumerate(json.loads(str(arrays["keys"]))):
                found[field][tuple(key) if len(key) > 1 else "".join(key)] = arrays[f"arr_{i}"]
        nll = {name: (pair[0], pair[1].astype(np.int64)) for name, pair in found["nll"].items()}
        members = found.pop("members").get("")
        return cls(**found | {"nll": nll, "members": members})
