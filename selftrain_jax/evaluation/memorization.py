"""Verbatim memorization: greedy extraction of known training sequences, by one teacher-forced pass.

Its relatives have rooms of their own: `free_running` (graded score), `approximate` (nearly the same text),
`discoverable` (extraction by sampling), `exposure` (canaries) and `membership`."""

import dataclasses
import itertools
import pathlib
from typing import Any, Iterable, Iterator, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.rows import read_rows
from selftrain_jax.data.audit import words
from selftrain_jax.data.diversity import ngram_hashes
from selftrain_jax.data.texts import warn_of_twins
from selftrain_jax.evaluation.items import cluster_numbers
from selftrain_jax.evaluation.likelihood import Scorer, after_bos, summed_log_probs
from selftrain_jax.models.config import DecoderConfig

MARGIN_NOISE = {"float32": 1e-4, "bfloat16": 0.125}
"""By compute dtype: two passes over the same tokens in other shapes (another batch, a cache) may differ by this much in
the gap of two logits. fp32: what `selftrain verify` allows; bf16: its eight bits at hidden states that make logits of
30."""

_AT_ONCE = 256
"""Documents of the training text that are held, and searched for probes, together."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A training sequence cut in two: does the prefix make the model emit the suffix?"""

    prefix: np.ndarray  # int32
    suffix: np.ndarray  # int32
    group: str = "all"  # "all" is of no group; for example how often the sequence was seen in training
    offset: int | None = None  # tokens of the training sequence that come before the prefix, where known
    cluster: str | int | None = None  # equal for probes that are not independent, as those of one document
    id: str | int | None = None  # what the file calls it


def load_probes(path: str | pathlib.Path, config: DecoderConfig, *, add_bos: bool = False) -> list[Probe]:
    """Probes of a file of rows with "prefix" and "suffix" (token ids) and, if it likes, "group", "offset",
    "cluster" and "id" (or "index"); without a cluster, probes of one "document" are one.

    Raises:
      InputError: a broken line, an empty part, ids outside the vocabulary, an offset that is no count, a group or
        cluster that is no name, or a probe longer than the context, each named by its number; a group "all" beside
        others.
    """
    probes: list[Probe] = []
    named: set[str] = set()
    for number, row in enumerate(read_rows(path, ("prefix", "suffix"), "probe file"), 1):
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
        offset = row.get("offset")
        if offset is not None and (type(offset) is not int or offset < 0):
            raise InputError(f"{where}: offset={offset!r} must count the tokens before the prefix, 0 or more")
        group = row.get("group")
        if group is not None:
            if type(group) not in (str, int) or not str(group).isprintable() or not str(group).strip():
                raise InputError(f"{where}: group={group!r} must be a name of printable characters, or left out")
            named.add(str(group))
        cluster, name = (
            next((row[field] for field in names if row.get(field) is not None), None)
            for names in (("cluster", "document"), ("id", "index"))
        )
        probes.append(Probe(prefix, suffix, "all" if group is None else str(group), offset, cluster, name))
    cluster_numbers([probe.cluster for probe in probes], f"probe file {path}")
    warn_of_twins(f"probe file {path}", [(p.prefix.tobytes(), p.suffix.tobytes()) for p in probes])
    if not probes:
        raise InputError(f"probe file {path} holds no probes")
    if "all" in named and len(named) > 1:
        raise InputError(f"probe file {path}: group 'all' stands for all probes together; give that group another name")
    return probes


def probe_columns(probes: Sequence[Probe]) -> dict[str, np.ndarray]:
    """ "group" (str `[n]`), "offset" (int `[n]`, -1: unknown), "suffix_at" (int `[n]`, tokens before the suffix, -1:
    unknown), and "cluster" (int) where some share it."""
    clusters = cluster_numbers([p.cluster for p in probes], "probes")
    return {
        "group": np.array([p.group for p in probes]),
        "offset": np.array([-1 if p.offset is None else p.offset for p in probes]),
        "suffix_at": np.array([-1 if p.offset is None else p.offset + len(p.prefix) for p in probes]),
        **({} if clusters is None else {"cluster": clusters}),
    }


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Outcome per probe."""

    exact: np.ndarray  # bool [n]; greedy decoding reproduces the whole suffix
    first_mismatch: np.ndarray  # int64 [n]; suffix tokens reproduced before the first miss (its length when exact)
    token_share: np.ndarray  # float64 [n]; share of suffix tokens that are the argmax given the TRUE tokens before
    strength: np.ndarray  # float64 [n]; extraction strength of the suffix given the prefix, see `extraction_strength`
    log_prob: np.ndarray  # float64 [n]; nats of the whole suffix
    least_margin: np.ndarray  # float64 [n]; smallest gap between the two best logits up to where it is decided
    length: np.ndarray  # int64 [n]; suffix tokens

    def extracted(self, num_tokens: int) -> np.ndarray:
        """bool `[n]`: greedy decoding reproduces the first `num_tokens` of the suffix.

        Every shorter suffix is free: it is reproduced when the first miss comes later. So one pass over 32 + 32 tokens
        also gives extraction at 32 + 1, ..., 32 + 31.
        """
        if not 1 <= num_tokens <= self.length.min():
            shortest = self.length.min()
            raise InputError(f"suffix length {num_tokens} must lie between 1 and {shortest}, the probes' shortest")
        return self.first_mismatch >= num_tokens

    def ambiguous(self, noise: float = MARGIN_NOISE["float32"]) -> np.ndarray:
        """bool `[n]`: some token up to the first miss won by a margin below `noise`, in logits.

        Only of these probes may `exact` and `first_mismatch` come out otherwise in a pass of another shape, precision
        or device, such as a decode loop with a cache. A miss with a clear winner is not ambiguous."""
        return self.least_margin < noise


def extract(scorer: Scorer, probes: Sequence[Probe], *, bos_token_id: int | None = None) -> Extraction:
    """Exact-match extraction (Carlini et al. 2023, arXiv 2202.07646, section 3: "extractable with k tokens").

    A suffix s of m tokens is extractable with the k tokens p before it if greedy decoding from p emits s. The published
    settings are k = m = 50 (Carlini et al.) and k = m = 32 (Biderman et al. 2023, arXiv 2304.11158); here every probe
    brings its own lengths. Greedy decoding emits the suffix exactly when every suffix token is the argmax of the
    teacher-forced pass: up to the first miss both condition on the same tokens.

    Args:
      bos_token_id: put before every prefix when given.

    Raises:
      InputError: no probes, or one that `score` cannot score (an empty part, too long, ids outside the vocabulary).
    """
    if not probes:
        raise InputError("there are no probes to extract")
    sequences, starts = probe_sequences(probes, bos_token_id)
    scores = scorer(sequences, starts)
    mismatch = [len(s.hits) if s.hits.all() else int(np.argmin(s.hits)) for s in scores]
    return Extraction(
        exact=np.array([bool(s.hits.all()) for s in scores]),
        first_mismatch=np.array(mismatch),
        token_share=np.array([s.hits.mean() for s in scores]),
        strength=np.array([_strength(s.hits) for s in scores]),
        log_prob=summed_log_probs(scores),
        least_margin=np.array([s.margins[: m + 1].min() for s, m in zip(scores, mismatch)], np.float64),
        length=np.array([len(s.hits) for s in scores]),
    )


def probe_sequences(probes: Sequence[Probe], bos_token_id: int | None = None) -> tuple[list[np.ndarray], list[int]]:
    """Every probe as one array, and where its suffix starts: the arguments of a scorer."""
    head = np.array([] if bos_token_id is None else [bos_token_id], np.int32)
    parts = [[head, np.asarray(p.prefix), np.asarray(p.suffix)] for p in probes]
    # An empty list would be an array of floats, and make the whole sequence one.
    sequences = [np.concatenate([x for x in three if x.size] or [head]) for three in parts]
    return sequences, [len(head) + len(p.prefix) for p in probes]


def extraction_strength(
    scorer: Scorer, sequences: Sequence[np.ndarray], *, bos_token_id: int | None = None
) -> np.ndarray:
    """float64 `[n]`: how little of a sequence must be given for greedy decoding to emit all the rest, in [0, 1].

    1 - k / T with the smallest k such that greedy decoding from the first k of the T tokens emits the other T - k
    (Carlini et al. 2021, arXiv 2012.07805; in this form Wang et al. 2025, arXiv 2406.09179, "extraction strength"). One
    teacher-forced pass suffices: k is the position behind the last token that is not the argmax. k = T leaves nothing
    to emit, so that a wrong last token is 0; the code of OpenUnlearning stops at k = T - 1 and makes it 1 / T.
    Without `bos_token_id` the first token has no predecessor and always belongs to what is given (k >= 1).
    """
    scores = scorer(after_bos(sequences, bos_token_id), [1] * len(sequences))
    free = int(bos_token_id is None)
    return np.array([_strength(np.concatenate([np.zeros(free, bool), s.hits])) for s in scores])


def _strength(hits: np.ndarray) -> float:
    misses = np.flatnonzero(~hits)
    return 1.0 - (int(misses[-1]) + 1) / len(hits) if misses.size else 1.0


def offset_bins(offsets: np.ndarray, edges: Sequence[int]) -> dict[tuple[int, int | None], np.ndarray]:
    """(first, last) -> bool `[n]`: the probes so many tokens from the start of their training sequence.

    A model recalls what it met early in its context window better than the same text further in (the offset effect,
    arXiv 2505.13171), so that extraction rates at different distances are not comparable. The last bin has no last
    (None); an offset below 0 (unknown) is in no bin.

    Args:
      offsets: int `[n]`.
      edges: rising token counts at which a new bin begins, for example (64, 512); 0 begins one anyway.

    Raises:
      InputError: edges that do not rise.
    """
    starts = [0, *edges]
    if any(b <= a for a, b in zip(starts, starts[1:])):
        raise InputError(f"offset edges {tuple(edges)} must rise, and start above 0")
    bins = {(a, b - 1): (offsets >= a) & (offsets < b) for a, b in zip(starts, edges)}
    return bins | {(starts[-1], None): offsets >= starts[-1]}


def held_out(
    probes: Sequence[Probe], documents: Iterable[np.ndarray], tokenizer: Any, sizes: Sequence[int | None] = (8,)
) -> dict[int | None, np.ndarray]:
    """By size n, bool `[n]`: no run of n words of the probe (prefix and suffix together) stands in a document.

    Words are those of the audit (`data.audit.words`) in the decoded text, so that the filter is the same under every
    tokenizer; one that a probe's end cuts in two matches nothing. So a probe that may have fewer than n whole words is
    compared whole as well, token by token: it may have no word at all, as ids without a text. The usual sizes are 8
    (strict) and 13 (Brown et al. 2020, arXiv 2005.14165, appendix C); None asks for the least, that the whole suffix
    does not occur, token by token. Hashes of 64 bits stand in for n-grams: a chance collision can only call a probe
    seen that was not, once in about 10^10 probes at 10^9 training tokens.

    Args:
      documents: token ids of each, as the model reads them; some are held at once.
    """
    wholes = [np.concatenate([p.prefix, p.suffix]) for p in probes]
    known: dict[str, int] = {}

    def words_of(sequences: Iterable[np.ndarray]) -> Iterator[list[str]]:
        ids = [sequence.tolist() for sequence in sequences]
        return map(words, tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    of_probes = [np.array([known.setdefault(w, len(known)) for w in found], np.int64) for found in words_of(wholes)]
    in_words = {n: np.array([n is not None and len(ids) >= n for ids in of_probes], bool) for n in sizes}
    whole = {n: np.array([n is None or len(ids) < n + 2 for ids in of_probes], bool) for n in sizes}  # of two ends
    by_words = {n: _Sought([ids for ids, yes in zip(of_probes, in_words[n]) if yes], n) for n in sizes}
    by_tokens = {}
    for n in sizes:
        tokens = [p.suffix for p in probes] if n is None else wholes
        by_tokens[n] = _Sought([ids for ids, yes in zip(tokens, whole[n]) if yes])
    documents = iter(documents)
    while batch := list(itertools.islice(documents, _AT_ONCE)):
        # All other words are one that no probe has.
        read = [np.array([known.get(w, len(known)) for w in found], np.int64) for found in words_of(batch)]
        for n in sizes:
            by_words[n].look_in(read)
            by_tokens[n].look_in(batch)
    found = {}
    for n in sizes:
        clean = np.ones(len(probes), bool)
        clean[in_words[n]] = by_words[n].absent
        clean[whole[n]] &= by_tokens[n].absent
        found[n] = clean
    return found


class _Sought:
    """Which of the sequences have no n-gram (n None: are not as a whole) in any document looked in so far."""

    def __init__(self, sequences: Sequence[np.ndarray], n: int | None = None):
        orders = np.array([len(ids) if n is None else n for ids in sequences], int)
        self.absent = np.ones(len(sequences), bool)
        self._by_order: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # hashes, and the sequence of each
        for m in set(orders.tolist()):
            chosen = np.flatnonzero(orders == m)
            hashes = [ngram_hashes(sequences[i], m) for i in chosen]
            self._by_order[m] = np.concatenate(hashes), np.repeat(chosen, list(map(len, hashes)))

    def look_in(self, documents: Sequence[np.ndarray]) -> None:
        for m, (hashes, owners) in self._by_order.items():
            training = np.concatenate([ngram_hashes(ids, m) for ids in documents])
            self.absent[owners[np.isin(hashes, training)]] = False
