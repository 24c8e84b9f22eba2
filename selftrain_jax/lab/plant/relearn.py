"""What `recovery` trains on and measures, of what was planted."""

import dataclasses
import pathlib
import warnings
from typing import Any, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import read_arrays
from selftrain_jax.core.rows import read_rows
from selftrain_jax.data.packing import PackedRows, addressed_bits, pack, packed_length, permutation
from selftrain_jax.data.subset import MANY_REPETITIONS
from selftrain_jax.data.texts import load_documents
from selftrain_jax.evaluation.memorization import Probe
from selftrain_jax.lab.plant.sequences import NGRAM, standing_in
from selftrain_jax.lab.plant.settings import RecoveryConfig
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.tokenizer import encode_texts

PREFIXES = {"half": 0.5, "all": 1.0, "twice": 2.0}
"""Lengths of the prefix, as shares of the probe's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """A row of the probes that `text.write_planted_text` wrote.

    Attributes:
      probe: asks for the suffix behind the prefix.
      before: the tokens of the sequence before the prefix.
      kind: of the sequence.
      repeats: how often it was inserted.
      relearned: whether relearning trains on it.
      document: the text that a passage is of.
    """

    probe: Probe
    before: np.ndarray
    kind: str
    repeats: int
    relearned: bool
    document: int | None

    def behind(self, share: float) -> Probe:
        """The same suffix behind `share` of the prefix's tokens, at least one; above 1 with those before it, too."""
        whole = np.concatenate([self.before, self.probe.prefix])
        count = max(round(share * len(self.probe.prefix)), 1)
        return Probe(whole[len(whole) - count :], self.probe.suffix)

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate([self.before, self.probe.prefix, self.probe.suffix])


def read_planted(path: pathlib.Path) -> list[Planted]:
    """The probes in their order."""
    fields = ("prefix", "suffix", "before", "kind", "group", "relearned")
    found = []
    for row in read_rows(path, fields, "planted probes"):
        prefix, suffix, before = (np.array(row[name], np.int32) for name in ("prefix", "suffix", "before"))
        repeats = int(row["group"].removeprefix("repeats="))
        probe = Probe(prefix, suffix, row["group"])
        found.append(Planted(probe, before, row["kind"], repeats, row["relearned"], row.get("document")))
    return found


def relearning_rows(
    recovery: RecoveryConfig,
    planted: Sequence[Planted],
    text: pathlib.Path | None,
    model: DecoderConfig,
    tokenizer: Any,
) -> PackedRows:
    """The rows of `recovery.steps` steps: of `text`, or of the inserted sequences that are kept for relearning, each a
    document; all of them in a new order, a pure function of (`train.seed`, pass), as often as it takes.

    Raises:
      InputError: there are none, or the text holds a sequence that is measured, which would come back to the twin, too.
    """
    if text is not None:
        texts = list(load_documents(text).values())
        documents = [np.array(ids, np.int32) for ids in encode_texts(tokenizer, texts, model.special_ids)]
        asked = measured(planted)
        if count := int(standing_in(documents, [one.tokens for one in asked], tokenizer).sum()):
            raise InputError(
                f"recovery text={recovery.text!r} holds {NGRAM} words in a row of {count} of the {len(asked)} planted "
                "sequences that are measured: relearning would teach what it asks for; take unrelated text, or none"
            )
    else:
        documents = [one.tokens for one in planted if one.relearned and one.repeats]
    if not documents:
        raise InputError("recovery text='': no inserted sequence is kept for relearning; raise plant.sequences")
    length, end = recovery.train.sequence_length, np.array([model.eos_token_id], np.int32)
    needed, order, passes = recovery.num_rows * length + 1, [], 0
    while needed > 0:
        for i in permutation(addressed_bits(recovery.train.seed, 2, passes), len(documents)).tolist():
            order.append(np.append(documents[i], end)[: max(needed - packed_length(0), 0)])
            needed -= packed_length(len(order[-1]))
            if needed <= 0:
                break
        passes += 1
    if text is not None and (repeated := len(order) / len(documents)) > MANY_REPETITIONS:
        what = f"recovery text={recovery.text!r}: its {len(documents)} documents are read {repeated:.1f} times on"
        warnings.warn(InputWarning(f"{what} average: what that does is not what as much text would do"), stacklevel=2)
    return pack(order, bos_token_id=model.bos_token_id, sequence_length=length)


def measured(planted: list[Planted]) -> list[Planted]:
    """Those that relearning does not train on."""
    return [one for one in planted if not one.relearned]


def read_recovery(directory: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """Step -> "PREFIX/exact" (bool) and "PREFIX/log_prob" (nats of the suffix) `[n]` of the probes that are `measured`,
    PREFIX one of `PREFIXES`, of step 0 all of them."""
    steps = sorted(int(path.stem.removeprefix("step-")) for path in directory.glob("step-*.npz"))
    return {step: read_arrays(recovery_file(directory, step), "recovery") for step in steps}


def recovery_file(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / f"step-{step}.npz"
