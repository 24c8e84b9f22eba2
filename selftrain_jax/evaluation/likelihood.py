"""Capability measures that are reductions of the scorer: text likelihood, multiple choice, minimal pairs."""

import dataclasses
import pathlib
import re
import unicodedata
import warnings
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import regex

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.rows import has_text, read_rows
from selftrain_jax.data.texts import check_strings, warn_of_twins
from selftrain_jax.evaluation.score import TokenScores
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.tokenizer import call_tokenizer

Scorer = Callable[[Sequence[np.ndarray], Sequence[int]], list[TokenScores]]
"""`(sequences, first scored positions) -> [TokenScores]`: `score.score` with its model and mesh filled in. It also
takes the keywords `moments` and `sampling` of `score.score`, for the measures that need them."""

_CONTEXT = ("passage", "context", "article", "paragraph", "story", "ctx", "premise", "dialogue", "support", "hint")
"""Fields in which data sets keep what an item is about."""
_MARGIN = regex.compile(r"^[\s\p{Z}\p{Cc}\p{Cf}]|[\s\p{Z}\p{Cc}\p{Cf}]\Z")
_CHANCE = 1e-3
"""With which the right choice is never the first where all places are as likely."""


def summed_log_probs(scores: Sequence[TokenScores]) -> np.ndarray:
    """float64 `[n]`: log-probability in nats of everything that was scored of each sequence."""
    return np.array([s.log_probs.sum(dtype=np.float64) for s in scores])


def after_bos(sequences: Sequence[np.ndarray], bos_token_id: int | None) -> list[np.ndarray]:
    """Each as an array, BOS before it unless that is None."""
    if bos_token_id is None:
        return [np.asarray(sequence) for sequence in sequences]
    return [np.concatenate([np.array([bos_token_id], np.int32), np.asarray(sequence)]) for sequence in sequences]


@dataclasses.dataclass(frozen=True)
class TextLikelihood:
    """Log-likelihood of a text set, one entry per window."""

    nll: np.ndarray  # float64 [W], summed nats
    num_tokens: np.ndarray  # int64 [W]
    num_bytes: int  # UTF-8 bytes of the whole set
    num_chars: int  # Unicode code points of the whole set
    num_words: int  # pieces between runs of white space, as the harness counts them
    document: np.ndarray  # int64 [W], which text the window is of

    @property
    def nll_per_token(self) -> float:
        """Nats per token; its exponential is the perplexity."""
        return float(self.nll.sum() / self.num_tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers (Gao et al. 2020, The Pile, section 3.1)."""
        return float(self.nll.sum() / np.log(2) / self.num_bytes)

    @property
    def bits_per_char(self) -> float:
        """Per Unicode character: above bits per byte wherever the text is not all ASCII."""
        return float(self.nll.sum() / np.log(2) / self.num_chars)

    @property
    def byte_perplexity(self) -> float:
        """exp(nll / bytes), the harness's `byte_perplexity`: 2 to the bits per byte."""
        return float(np.exp(self.nll.sum() / self.num_bytes))

    @property
    def word_perplexity(self) -> float:
        """exp(nll / words), the harness's `word_perplexity` (as WikiText's is usually given); infinite past 1e308."""
        with np.errstate(over="ignore"):  # some text has hardly any white space
            return float(np.exp(self.nll.sum() / self.num_words))


def text_likelihood(
    scorer: Scorer, config: DecoderConfig, tokenizer, texts: Sequence[str], *, context_len: int = 1
) -> TextLikelihood:
    """Every token of every text is scored once, in `text_windows`."""
    *windows, document = text_windows(config, tokenizer, texts, context_len)
    scores = scorer(*windows)
    return TextLikelihood(
        nll=-summed_log_probs(scores),
        num_tokens=np.array([s.log_probs.size for s in scores]),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_chars=sum(map(len, texts)),
        num_words=sum(len(re.split(r"\s+", text)) for text in texts),
        document=document,
    )


def text_windows(
    config: DecoderConfig, tokenizer, texts: Sequence[str], context_len: int
) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    """(sequences, first scored indices, texts they are of): the windows of `rolling_windows` over the model's whole
    context, text by text.

    The first token of a text is scored given BOS alone. `context_len` is explained at `rolling_windows`.
    """
    _check_context(context_len, config.max_position)
    windows = [
        (*window, i)
        for i, ids in enumerate(encode_all(tokenizer, texts))
        for window in rolling_windows(ids, config.bos_token_id, config.max_position, context_len)
    ]
    if not windows:
        raise InputError("the model's tokenizer makes no token of the whole text set; leave it out")
    sequences, starts, document = zip(*windows)
    return list(sequences), list(starts), np.array(document)


def rolling_windows(
    ids: Sequence[int], prefix_id: int, max_seq_len: int, context_len: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts a long text into (sequence, first scored index): every id is scored exactly once, given at least
    `context_len` ids before it (fewer only at the text's own beginning, where `prefix_id` comes first).

    These are the windows of the harness's rolling log-likelihood: the first scores `max_seq_len` ids; each later one
    moves on by the stride max_seq_len - context_len + 1 and scores as many. The last one, with fewer left to score, is
    filled up with older context rather than left short. `context_len` 1 is the fastest and gives the worst likelihood;
    `max_seq_len` scores one id per window, each given all that the model can see.

    Args:
      prefix_id: stands before the text, usually BOS.
      max_seq_len: inputs that the model can see; a window holds at most one id more, its last being scored only.
      context_len: from 1 to `max_seq_len`.
    """
    _check_context(context_len, max_seq_len)
    ids = np.concatenate([[prefix_id], ids]).astype(np.int32)  # from here on id i is the input, id i + 1 its target
    stride = max_seq_len - context_len + 1
    scored = 0
    while scored < len(ids) - 1:
        end = min(scored + (stride if scored else max_seq_len), len(ids) - 1)
        begin = max(end - max_seq_len, 0)
        yield ids[begin : end + 1], scored + 1 - begin
        scored = end


def _check_context(context_len: int, max_seq_len: int) -> None:
    if not 1 <= context_len <= max_seq_len:
        raise InputError(f"context_len={context_len} must lie between 1 and the model's context of {max_seq_len}")


def encode_all(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with no special tokens added."""
    return call_tokenizer(tokenizer, texts)


def load_multiple_choice(path: str | pathlib.Path) -> list[dict]:
    """Rows with "question" (not the same in all), "choices" (list of str) and "gold" (index), checked; or those of
    TruthfulQA, with "question" and "mc1_targets" (choice -> 1, or 0 where it is wrong).

    Warns:
      InputWarning: some items have the right choice twice, as eight of ARC's do; its copies are left out, since one of
        them would count as wrong.
    """
    rows = list(read_rows(path, ("question", "choices", "gold"), "question file", _of_targets))
    check_strings(rows, ("question",), f"question file {path}")
    repeated = []
    for number, row in enumerate(rows, 1):
        where, choices, gold = f"question file {path}, item {number}", row["choices"], row["gold"]
        if not has_text(row["question"]):
            raise InputError(f"{where}: question is blank; make pairs of right and wrong texts minimal pairs")
        if not isinstance(choices, list) or len(choices) < 2:
            raise InputError(f"{where}: choices must be a list of two or more texts")
        if not all(isinstance(choice, str) and has_text(choice) for choice in choices):
            raise InputError(f"{where}: every choice must be a text that is not blank")
        check_strings([dict(enumerate(choices))], range(len(choices)), f"{where}, choices")
        if type(gold) is not int or not 0 <= gold < len(choices):
            raise InputError(f"{where}: gold={gold!r} must index the {len(choices)} choices, counted from 0")
        right = choices[gold]
        kept = [choice for i, choice in enumerate(choices) if i == gold or not alike(choice, right)]
        if len(kept) < 2:
            raise InputError(f"{where}: all choices are the same, so that no answer is wrong")
        if len(kept) < len(choices):
            repeated.append(number)
            row.update(choices=kept, gold=kept.index(right))
    if repeated:
        what = f"{len(repeated)} of {len(rows)} items, first item {repeated[0]}, have the right choice twice"
        warnings.warn(f"question file {path}: {what}; the copies are left out", InputWarning, stacklevel=2)
    if all(row["gold"] for row in rows) and np.prod([1 - 1 / len(row["choices"]) for row in rows]) < _CHANCE:
        what = f"question file {path}: the first choice is never right; is gold counted from 1? It counts from 0"
        warnings.warn(what, InputWarning, stacklevel=2)
    warn_of_twins(f"question file {path}", [(row["question"], *row["choices"]) for row in rows])
    _warn_of_margins(f"question file {path}", [[choice.lstrip() for choice in row["choices"]] for row in rows])
    if not rows:
        raise InputError(f"question file {path} holds no questions")
    if len(rows) > 1 and len({row["question"] for row in rows}) == 1:
        raise InputError(
            f"question file {path}, items 1 to {len(rows)}: all have the same question; write what tells them apart "
            "into it, or make them minimal pairs"
        )
    return _known(f"question file {path}", rows, "question", "choices", "gold")


def _known(what: str, rows: Sequence[dict], *fields: str) -> list[dict]:
    """`rows` with these fields alone, by which it is told of what kind an item is, and its "id" (or "index") and
    "cluster"; warns of other fields in which the text that an item is about may be."""
    others = dict.fromkeys(name for row in rows for name in row if name not in (*fields, "id", "index", "cluster"))
    values = {name: [row.get(name) for row in rows] for name in others}
    if unread := [name for name in others if name in _CONTEXT and any(values[name]) or _are_sentences(values[name])]:
        more = f"the field {unread[0]!r} is not read; what the model shall see of it goes into the {fields[0]}"
        warnings.warn(f"{what}: {more}", InputWarning, stacklevel=3)
    rows = [{"id": row["index"]} | row if "index" in row else row for row in rows]
    return [{name: row[name] for name in (*fields, "id", "cluster") if name in row} for row in rows]


def _warn_of_margins(what: str, items: Sequence[Sequence[str]]) -> None:
    """Of items some of whose answers alone stand in white space: its tokens count as what is answered."""
    if odd := [n for n, texts in enumerate(items, 1) if len({_MARGIN.search(text) is None for text in texts}) > 1]:
        what += f": {len(odd)} of {len(items)} items, first item {odd[0]}, have white space around some answers"
        warnings.warn(f"{what} and not around others, and its likelihood counts", InputWarning, stacklevel=3)


def _are_sentences(values: Sequence[Any]) -> bool:
    """Whether most are texts of three words and more."""
    return np.median([len(value.split()) if isinstance(value, str) else 0 for value in values]) > 2


def alike(a: str, b: str) -> bool:
    """Whether two answers are one but for white space around them and the Unicode form of their characters (NFC)."""
    return unicodedata.normalize("NFC", a.strip()) == unicodedata.normalize("NFC", b.strip())


def _of_targets(row: Any) -> Any:
    """A row of TruthfulQA with "choices" and "gold"; any other row as it is, one that has these already too."""
    own = isinstance(row, dict) and any(row.get(name) is not None for name in ("choices", "gold"))
    targets = row.get("mc1_targets") if isinstance(row, dict) and not own else None
    values = list(targets.values()) if isinstance(targets, dict) else []
    if values.count(1) != 1 or values.count(0) != len(values) - 1:
        return row
    return row | {"choices": list(targets), "gold": values.index(1)}


def choice_log_probs(
    scorer: Scorer, config: DecoderConfig, tokenizer, rows: Sequence[dict], template: str, *, add_bos: bool
) -> list[np.ndarray]:
    """Log-probability of every choice given its question, in nats: one float64 array per row.

    Args:
      template: the prompt, with `{question}` in it; each choice is appended after one space.
      add_bos: start every prompt with BOS (for models whose documents start with it).

    Raises:
      InputError: an empty prompt without BOS, before which nothing stands; a choice without a token of its own, or
        longer than the model's context.
    """
    prompts = [template.format(question=row["question"]) for row in rows]
    texts = [prompt + " " + choice.lstrip() for prompt, row in zip(prompts, rows) for choice in row["choices"]]
    numbers = np.repeat(np.arange(len(rows)), [len(row["choices"]) for row in rows])
    sequences, starts = _after_prompts(config, tokenizer, texts, prompts, numbers, add_bos)
    ends = np.cumsum([len(row["choices"]) for row in rows])
    return np.split(summed_log_probs(scorer(sequences, starts)), ends[:-1])


def _after_prompts(
    config: DecoderConfig,
    tokenizer,
    texts: Sequence[str],
    prompts: Sequence[str],
    numbers: Sequence[int],
    add_bos: bool,
) -> tuple[list[list[int]], list[int]]:
    """The ids of `texts`, and where those begin that come after as many tokens as the prompt has by itself; errors as
    of `choice_log_probs`.

    Args:
      numbers: which of the prompts begins each text.
    """
    lengths = np.array([len(ids) for ids in encode_all(tokenizer, prompts)])[numbers]
    head = [config.bos_token_id] if add_bos else []
    sequences, starts, shortened = [], [], set()
    for number, text, ids, prompt_length in zip(numbers, texts, encode_all(tokenizer, texts), lengths):
        ids = head + ids
        start = len(head) + int(prompt_length)
        if start >= len(ids):
            raise InputError(f"the choice at the end of {text[-80:]!r} adds no token to its prompt; leave the item out")
        cut = max(len(ids) - config.max_position - 1, 0)  # a prompt longer than the context loses its beginning
        if start - cut < 1:
            what = f"a choice of {len(ids) - start} tokens is longer than the model's context of {config.max_position}"
            raise InputError(what if start else "a prompt is empty, so nothing stands before its choices: set add_bos")
        sequences.append(ids[cut:])
        starts.append(start - cut)
        if cut:
            shortened.add(number)
    if shortened:
        what = f"{len(shortened)} of {len(prompts)} questions are longer than the model's context of"
        first = prompts[min(shortened)][:60]
        warnings.warn(
            f"{what} {config.max_position} and lose their beginning, the first {first!r}", InputWarning, stacklevel=3
        )
    return sequences, starts


def multiple_choice(
    scorer: Scorer, config: DecoderConfig, tokenizer, rows: Sequence[dict], template: str, *, add_bos: bool
) -> dict[str, np.ndarray]:
    """Which questions are answered right: bool `[n]` for each of three rules.

    "acc" picks the choice of the highest log-probability, "acc_norm" that of the highest per character, "acc_bytes" per
    UTF-8 byte (all as in lm-evaluation-harness; the first choice wins ties).
    """
    hits = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for row, log_probs in zip(rows, choice_log_probs(scorer, config, tokenizer, rows, template, add_bos=add_bos)):
        choices = [choice.lstrip() for choice in row["choices"]]
        hits["acc"].append(np.argmax(log_probs) == row["gold"])
        hits["acc_norm"].append(np.argmax(log_probs / list(map(len, choices))) == row["gold"])
        hits["acc_bytes"].append(np.argmax(log_probs / [len(c.encode()) for c in choices]) == row["gold"])
    return {rule: np.array(values) for rule, values in hits.items()}


def load_last_words(path: str | pathlib.Path) -> list[dict]:
    """Rows with "text", of two words or more (the format of LAMBADA).

    Warns:
      InputWarning: what stands behind the last space, and is asked for, as in the harness, is no word, or several.
    """
    rows = list(read_rows(path, ("text",), "last-word file"))
    check_strings(rows, ("text",), f"last-word file {path}")
    for number, row in enumerate(rows, 1):
        # A line feed behind the last word would be asked for with it.
        if not all(map(has_text, row["text"].rpartition(" ")[::2])) or row["text"] != row["text"].rstrip():
            raise InputError(f"last-word file {path}, item {number}: text must be words, a space and the last word")
    last = [row["text"].rpartition(" ")[2] for row in rows]
    if other := [n for n, word in enumerate(last, 1) if not _is_word(word)]:
        what = f"{len(other)} of {len(rows)} items, first item {other[0]}, have no word, or several, behind their last"
        what += f" space ({last[other[0] - 1]!r}), and are asked for that"
        warnings.warn(f"last-word file {path}: {what}", InputWarning, stacklevel=2)
    warn_of_twins(f"last-word file {path}", [row["text"] for row in rows])
    if not rows:
        raise InputError(f"last-word file {path} holds no texts")
    return _known(f"last-word file {path}", rows, "text")


def _is_word(text: str) -> bool:
    return len(text.split()) == 1 and any(map(str.isalnum, text)) and not _MARGIN.search(text)


def last_words(scorer: Scorer, config: DecoderConfig, tokenizer, rows: Sequence[dict], *, add_bos: bool) -> np.ndarray:
    """bool `[n]`: greedy decoding after all but the last word gives all of its tokens (Paperno et al. 2016; as the
    harness's `lambada_openai` counts). Errors as of `choice_log_probs`."""
    texts = [row["text"] for row in rows]
    prompts = [text.rpartition(" ")[0].rstrip() for text in texts]
    numbers = np.arange(len(texts))
    sequences, starts = _after_prompts(config, tokenizer, texts, prompts, numbers, add_bos)
    return np.array([s.hits.all() for s in scorer(sequences, starts)])


def load_minimal_pairs(path: str | pathlib.Path) -> list[dict]:
    """Rows with "sentence_good" and "sentence_bad" (the format of BLiMP).

    Warns:
      InputWarning: some items have one sentence twice, as seven of BLiMP's do, and are left out.
    """
    rows = list(read_rows(path, ("sentence_good", "sentence_bad"), "minimal-pair file"))
    check_strings(rows, ("sentence_good", "sentence_bad"), f"minimal-pair file {path}")
    for number, row in enumerate(rows, 1):
        if not (has_text(row["sentence_good"]) and has_text(row["sentence_bad"])):
            raise InputError(f"minimal-pair file {path}, item {number}: an empty sentence, the likeliest of all")
    equal = [n for n, row in enumerate(rows, 1) if alike(row["sentence_good"], row["sentence_bad"])]
    if equal:
        what = f"{len(equal)} of {len(rows)} items, first item {equal[0]}, have one sentence twice"
        warnings.warn(f"minimal-pair file {path}: {what}; they are left out", InputWarning, stacklevel=2)
    rows = [row for n, row in enumerate(rows, 1) if n not in equal]
    pairs = [(row["sentence_good"], row["sentence_bad"]) for row in rows]
    warn_of_twins(f"minimal-pair file {path}", pairs)
    _warn_of_margins(f"minimal-pair file {path}", pairs)
    if not rows:
        raise InputError(f"minimal-pair file {path} holds no pairs")
    return _known(f"minimal-pair file {path}", rows, "sentence_good", "sentence_bad")


def minimal_pairs(scorer: Scorer, config: DecoderConfig, tokenizer, rows: Sequence[dict]) -> np.ndarray:
    """bool `[n]`: the good sentence, read from BOS, is strictly more likely than the bad one (Warstadt et al. 2020)."""
    texts = [row[name] for row in rows for name in ("sentence_good", "sentence_bad")]
    sequences = [[config.bos_token_id, *ids] for ids in encode_all(tokenizer, texts)]
    totals = summed_log_probs(scorer(sequences, [1] * len(sequences)))
    return totals[0::2] > totals[1::2]
