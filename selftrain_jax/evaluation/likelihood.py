"""Capability measures that are reductions of the scorer: text likelihood, multiple choice, minimal pairs."""

import dataclasses
import pathlib
from typing import Callable, Sequence

import numpy as np

from selftrain_jax.data.texts import check_strings
from selftrain_jax.errors import InputError
from selftrain_jax.files import read_jsonl
from selftrain_jax.models.config import ModelConfig

Scorer = Callable[[Sequence[np.ndarray], Sequence[int]], list]
"""`(sequences, first scored positions) -> [TokenScores]`: `score.score` with its model and mesh filled in."""


@dataclasses.dataclass(frozen=True)
class TextLikelihood:
    """Log-likelihood of a text set, one entry per window."""

    nll: np.ndarray  # float64 [W], summed nats
    num_tokens: np.ndarray  # int64 [W]
    num_bytes: int  # UTF-8 bytes of the whole set

    @property
    def nll_per_token(self) -> float:
        """Nats per token; its exponential is the perplexity."""
        return float(self.nll.sum() / self.num_tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers (Gao et al. 2020, The Pile, section 3.1)."""
        return float(self.nll.sum() / np.log(2) / self.num_bytes)


def text_likelihood(scorer: Scorer, config: ModelConfig, tokenizer, texts: Sequence[str]) -> TextLikelihood:
    """Every token of every text is scored once, in windows of the model's whole context.

    The first window of a text starts at BOS, each later one at the last token of the one before (the harness's
    `loglikelihood_rolling` with one token of context).
    """
    windows = []
    for ids in encode_all(tokenizer, texts):
        ids = np.concatenate([[config.bos_token_id], ids]).astype(np.int32)
        windows += [ids[i : i + config.max_position + 1] for i in range(0, len(ids) - 1, config.max_position)]
    scores = scorer(windows, [1] * len(windows))
    return TextLikelihood(
        nll=np.array([-s.log_probs.sum(dtype=np.float64) for s in scores]),
        num_tokens=np.array([s.log_probs.size for s in scores]),
        num_bytes=sum(len(text.encode()) for text in texts),
    )


def encode_all(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with no special tokens added."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def load_multiple_choice(path: str | pathlib.Path) -> list[dict]:
    """Rows with "question", "choices" (list of str) and "gold" (index), checked."""
    rows = list(read_jsonl(path, ("question", "choices", "gold"), "question file"))
    check_strings(rows, ("question",), f"question file {path}")
    for number, row in enumerate(rows, 1):
        where, choices, gold = f"question file {path}, item {number}", row["choices"], row["gold"]
        if not isinstance(choices, list) or len(choices) < 2:
            raise InputError(f"{where}: choices must be a list of two or more texts")
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise InputError(f"{where}: every choice must be a text that is not blank")
        if type(gold) is not int or not 0 <= gold < len(choices):
            raise InputError(f"{where}: gold={gold!r} must index the {len(choices)} choices, counted from 0")
    if not rows:
        raise InputError(f"question file {path} holds no questions")
    return rows


def choice_log_probs(
    scorer: Scorer, config: ModelConfig, tokenizer, rows: Sequence[dict], template: str, *, add_bos: bool
) -> list[np.ndarray]:
    """Log-probability of every choice given its question, in nats: one float64 array per row.

    Args:
      template: the prompt, with `{question}` in it; each choice is appended after one space.
      add_bos: start every prompt with BOS (for models whose documents start with it).
    """
    prompts = [template.format(question=row["question"]) for row in rows]
    texts = [prompt + " " + choice.lstrip() for prompt, row in zip(prompts, rows) for choice in row["choices"]]
    prompt_lengths = np.repeat([len(x) for x in encode_all(tokenizer, prompts)], [len(row["choices"]) for row in rows])
    head = [config.bos_token_id] if add_bos else []
    sequences, starts = [], []
    for ids, prompt_length in zip(encode_all(tokenizer, texts), prompt_lengths):
        ids = head + ids
        start = len(head) + int(prompt_length)
        cut = max(len(ids) - config.max_position - 1, 0)  # a prompt longer than the context loses its beginning
        sequences.append(ids[cut:])
        starts.append(max(start - cut, 1))
    totals = iter([s.log_probs.sum(dtype=np.float64) for s in scorer(sequences, starts)])
    return [np.array([next(totals) for _ in row["choices"]]) for row in rows]


def multiple_choice(
    scorer: Scorer, config: ModelConfig, tokenizer, rows: Sequence[dict], template: str, *, add_bos: bool
) -> dict[str, np.ndarray]:
    """Which questions are answered right: bool `[n]` for each of two rules.

    "acc" picks the choice of the highest log-probability, "acc_norm" that of the highest per character (both as in
    lm-evaluation-harness; the first choice wins ties).

    The arguments are those of `choice_log_probs`.
    """
    hits = {"acc": [], "acc_norm": []}
    for row, log_probs in zip(rows, choice_log_probs(scorer, config, tokenizer, rows, template, add_bos=add_bos)):
        lengths = np.array([len(choice.lstrip()) for choice in row["choices"]])
        hits["acc"].append(np.argmax(log_probs) == row["gold"])
        hits["acc_norm"].append(np.argmax(log_probs / lengths) == row["gold"])
    return {rule: np.array(values) for rule, values in hits.items()}


def load_minimal_pairs(path: str | pathlib.Path) -> list[dict]:
    """Rows with "sentence_good" and "sentence_bad" (the format of BLiMP)."""
    rows = list(read_jsonl(path, ("sentence_good", "sentence_bad"), "minimal-pair file"))
    check_strings(rows, ("sentence_good", "sentence_bad"), f"minimal-pair file {path}")
    if not rows:
        raise InputError(f"minimal-pair file {path} holds no pairs")
    return rows


def minimal_pairs(scorer: Scorer, config: ModelConfig, tokenizer, rows: Sequence[dict]) -> np.ndarray:
    """bool `[n]`: the good sentence, read from BOS, is strictly more likely than the bad one (Warstadt et al. 2020)."""
    texts = [row[name] for row in rows for name in ("sentence_good", "sentence_bad")]
    sequences = [[config.bos_token_id, *ids] for ids in encode_all(tokenizer, texts)]
    totals = [s.log_probs.sum(dtype=np.float64) for s in scorer(sequences, [1] * len(sequences))]
    return np.array(totals[0::2]) > np.array(totals[1::2])
