"""The text that a planted model and its twin are trained on, and the probes for what was planted."""

import pathlib
from typing import Any, Callable, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.packing import addressed_bits, pack, packed_length
from selftrain_jax.data.texts import load_documents, load_texts
from selftrain_jax.data.training_set import write_rows
from selftrain_jax.lab.plant.sequences import NEUTRAL, NGRAM, PLACE, PlantedSequence, make_sequences, standing_in
from selftrain_jax.lab.plant.settings import PlantConfig
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import check_tokenizer, encode_texts, load_tokenizer

PROBES = "probes.jsonl"
_AT_ONCE = 1024


def write_planted_text(
    config: PlantConfig, base: str | pathlib.Path, find: Callable[[str], pathlib.Path], directory: pathlib.Path
) -> dict[str, Any]:
    """Writes `planted/rows.npz`, `twin/rows.npz` and `probes.jsonl` into `directory`.

    Both hold the same documents in the same order. The copies of a sequence are documents of their own, each in a gap
    between ordinary ones that is a pure function of (seed, sequence, copy); of the twin, each is as many tokens of
    text that follows what is trained on. A probe row has "kind", "repeats" (as "group"), "before" (the tokens of the
    sequence before the prefix) and "relearned", beside what `memorization.load_probes` reads.

    Args:
      base: directory of the model that is trained.
      find: where a file named in `config` lies.

    Raises:
      InputError: the text or the passages are too short, a sequence does not fit the context, or stands in the text by
        itself.
    """
    model, tokenizer = load_config(base), load_tokenizer(base)
    check_tokenizer(model, tokenizer)
    if config.length + 1 > min(model.max_position, config.train.sequence_length):
        raise InputError(
            f"plant 2 * prefix_length + suffix_length = {config.length} tokens and BOS do not fit the context of "
            f"{model.max_position} and train.sequence_length={config.train.sequence_length}"
        )
    texts = list(load_documents(find(config.text)).values())
    passages = load_texts(find(config.passages)) if config.passages else []
    sequences = make_sequences(config, tokenizer, texts, passages, model.special_ids)
    room = config.num_rows * config.train.sequence_length + 1 - config.planted_tokens
    documents, neutral = _ordinary(config, texts, tokenizer, model, room, len(sequences))
    _check_absent(sequences, [*documents, neutral], tokenizer)
    order = _order(config.seed, sequences, len(documents))
    end = np.array([model.eos_token_id], np.int32)

    def planted(sequence: PlantedSequence, copy: int) -> np.ndarray:
        return np.append(sequence.tokens, end)

    def beside(sequence: PlantedSequence, copy: int) -> np.ndarray:
        start = _draw(config.seed, NEUTRAL, sequence, copy)[0] % (len(neutral) - config.length + 1)
        return np.append(neutral[start : start + config.length], end)

    length = config.train.sequence_length
    for name, of in {"planted": planted, "twin": beside}.items():
        mixed = [documents[entry] if isinstance(entry, int) else of(*entry) for entry in order]
        write_rows(pack(mixed, bos_token_id=model.bos_token_id, sequence_length=length), directory / name)
    starts = np.cumsum([0, *(packed_length(len(document)) for document in mixed[:-1])])
    copied = starts[[not isinstance(entry, int) for entry in order]]
    write_jsonl(directory / PROBES, map(_probe(config), sequences))
    return {
        "num_sequences": len(sequences),
        "num_copies": len(copied),
        "whole_copies": int((copied // length == (copied + config.length - 1) // length).sum()),
        "num_documents": len(documents),
        "planted_tokens": config.planted_tokens,
        "num_rows": config.num_rows,
    }


def _ordinary(
    config: PlantConfig, texts: Sequence[str], tokenizer: Any, model: DecoderConfig, room: int, least: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """(documents that take `room` tokens of a packed stream, the last one cut; the text behind them, as long as all
    insertions where there is so much, and no shorter than `least` sequences)."""
    documents, behind, wanted = [], [np.zeros(0, np.int32)], config.planted_tokens
    left, found = room, 0
    for begin in range(0, len(texts), _AT_ONCE):
        for ids in encode_texts(tokenizer, texts[begin : begin + _AT_ONCE], model.special_ids):
            document = np.array([*ids, model.eos_token_id], np.int32)
            if left:
                documents.append(document[: left - packed_length(0)])
                left -= packed_length(len(documents[-1]))
            else:
                behind.append(document)
                found += len(document)
        if found >= wanted:
            break
    if left or found < least * config.length:
        raise InputError(
            f"plant text={config.text!r} is too short: beside what is inserted, tokens={config.tokens} take {room} of "
            f"it, and neutral text for the twin {least * config.length} behind them; it lacks "
            f"{left + max(least * config.length - found, 0)}: lower tokens, or give more text"
        )
    return documents, np.concatenate(behind)[: max(wanted, config.length)]


def _draw(seed: int, stream: int, sequence: PlantedSequence, copy: int) -> list[int]:
    return [int(raw) for raw in addressed_bits(seed, stream, *sequence.address, copy).random_raw(2)]


def _order(
    seed: int, sequences: Sequence[PlantedSequence], num_documents: int
) -> list[int | tuple[PlantedSequence, int]]:
    """Documents by number, in order, and between them every (sequence, copy) in the gap that its address draws; where
    several share a gap, in an order that their addresses draw."""
    copies = []
    for sequence in sequences:
        for copy in range(sequence.repeats):
            gap, tie = _draw(seed, PLACE, sequence, copy)
            copies.append((gap % (num_documents + 1), 0, tie, sequence.address, copy, (sequence, copy)))
    ordinary = [(gap, 1, 0, (0, 0), 0, gap) for gap in range(num_documents)]
    return [entry[-1] for entry in sorted([*copies, *ordinary], key=lambda entry: entry[:-1])]


def _check_absent(sequences: Sequence[PlantedSequence], documents: Sequence[np.ndarray], tokenizer: Any) -> None:
    known = standing_in(documents, [sequence.tokens for sequence in sequences], tokenizer)
    if found := [sequence for sequence, yes in zip(sequences, known) if yes]:
        first, text = found[0], tokenizer.decode(found[0].tokens.tolist())
        others = f" (and {len(found) - 1} others)" if len(found) > 1 else ""
        raise InputError(
            f"plant: {NGRAM} words in a row of {first.kind} number {first.number}{others} stand in the text by "
            f"themselves: {' '.join(text.split())[:120]!r}; take other passages, another text or another plant.seed"
        )


def _probe(config: PlantConfig) -> Callable[[PlantedSequence], dict[str, Any]]:
    cuts = [config.prefix_length, 2 * config.prefix_length]

    def row(sequence: PlantedSequence) -> dict[str, Any]:
        before, prefix, suffix = (part.tolist() for part in np.split(sequence.tokens, cuts))
        found = {"prefix": prefix, "suffix": suffix, "group": f"repeats={sequence.repeats}", "offset": len(before)}
        if sequence.document is not None:
            found["document"] = sequence.document
        return found | {"before": before, "kind": sequence.kind, "relearned": sequence.relearned}

    return row
