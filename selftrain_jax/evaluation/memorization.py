"""Verbatim memorization: greedy extraction of known training sequences, by one teacher-forced pass."""

import dataclasses
import pathlib
from typing import Sequence

import numpy as np

from selftrain_jax.errors import InputError
from selftrain_jax.evaluation.likelihood import Scorer
from selftrain_jax.files import read_jsonl
from selftrain_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Probe:
    """A training sequence cut in two: does the prefix make the model emit the suffix?"""

    prefix: np.ndarray  # int32
    suffix: np.ndarray  # int32
    group: str = "all"  # for example how often the sequence was seen in training


def load_probes(path: str | pathlib.Path, config: ModelConfig, *, add_bos: bool = False) -> list[Probe]:
    """Probes of a JSON-lines file with "prefix" and "suffix" (token ids) and, if it likes, "group".

    Raises:
      InputError: a broken line, an empty part, ids outside the vocabulary, or a probe longer than the context; each
        named by its number.
    """
    probes = []
    for number, row in enumerate(read_jsonl(path, ("prefix", "suffix"), "probe file"), 1):
        where = f"probe file {path}, probe {number}"
        for part in ("prefix", "suffix"):
            # JSON's true is no id, nor is 1.5, though numpy would make both 1.
            if not isinstance(row[part], list) or not row[part] or any(type(token) is not int for token in row[part]):
                raise InputError(f"{where}: {part} must be a list of at least one token id")
            if min(row[part]) < 0 or max(row[part]) >= config.vocab_size:
                raise InputError(f"{where}: {part} token ids must lie in [0, {config.vocab_size})")
        prefix, suffix = np.array(row["prefix"], np.int32), np.array(row["suffix"], np.int32)
        if prefix.size + suffix.size - 1 + add_bos > config.max_position:
            raise InputError(
                f"{where}: {prefix.size + suffix.size} tokens are longer than the model's context of "
                f"{config.max_position}; use shorter probes"
            )
        probes.append(Probe(prefix, suffix, str(row.get("group", "all"))))
    if not probes:
        raise InputError(f"probe file {path} holds no probes")
    return probes


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Outcome per probe."""

    exact: np.ndarray  # bool [n]; greedy decoding reproduces the whole suffix
    first_mismatch: np.ndarray  # int64 [n]; suffix tokens reproduced before the first miss (its length when exact)
    token_share: np.ndarray  # float64 [n]; share of suffix tokens that are the argmax given the TRUE tokens before
    log_prob: np.ndarray  # float64 [n]; nats of the whole suffix
    least_margin: np.ndarray  # float64 [n]; smallest gap between the two best logits up to where it is decided


def extract(scorer: Scorer, probes: Sequence[Probe], *, bos_token_id: int | None = None) -> Extraction:
    """Exact-match extraction (Carlini et al. 2023, section 3: "extractable with k tokens of context").

    Greedy decoding emits the suffix exactly when every suffix token is the argmax of the teacher-forced pass: up to
    the first miss both condition on the same tokens. `bos_token_id` is put before every prefix when given.
    """
    head = [] if bos_token_id is None else [bos_token_id]
    sequences = [np.concatenate([head, p.prefix, p.suffix]).astype(np.int32) for p in probes]
    scores = scorer(sequences, [len(head) + len(p.prefix) for p in probes])
    mismatch = [len(s.hits) if s.hits.all() else int(np.argmin(s.hits)) for s in scores]
    return Extraction(
        exact=np.array([bool(s.hits.all()) for s in scores]),
        first_mismatch=np.array(mismatch),
        token_share=np.array([s.hits.mean() for s in scores]),
        log_prob=np.array([s.log_probs.sum(dtype=np.float64) for s in scores]),
        least_margin=np.array([s.margins[: m + 1].min() for s, m in zip(scores, mismatch)], np.float64),
    )


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit polynomial hash of every window of n tokens; empty when there are fewer than n."""
    if len(tokens) < n:
        return np.zeros(0, np.uint64)
    values = np.asarray(tokens, np.uint64) + np.uint64(1)
    hashes = np.zeros(len(values) - n + 1, np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[i : len(values) - n + 1 + i]
        hashes ^= hashes >> np.uint64(29)
    return hashes


def held_out(probes: Sequence[Probe], training_texts: Sequence[np.ndarray], n: int = 8) -> np.ndarray:
    """bool `[n]`: no n-gram of the probe (prefix and suffix together) occurs in any of the training token arrays.

    A probe shorter than n tokens is held out when it does not occur whole. Hashes of 64 bits stand in for n-grams: a
    chance collision can only call a probe seen that was not, once in about 10^10 probes at 10^9 training tokens.
    """
    sequences = [np.concatenate([p.prefix, p.suffix]) for p in probes]
    orders = np.array([min(n, len(ids)) for ids in sequences])
    clean = np.ones(len(probes), bool)
    for m in set(orders.tolist()):
        chosen = np.flatnonzero(orders == m)
        hashes = [ngram_hashes(sequences[i], m) for i in chosen]
        training = np.concatenate([np.zeros(0, np.uint64), *(ngram_hashes(text, m) for text in training_texts)])
        seen = np.isin(np.concatenate(hashes), training)
        clean[chosen] = [not part.any() for part in np.split(seen, np.cumsum([len(h) for h in hashes])[:-1])]
    return clean
