"""Figures that others published for a Pythia model, as a check of tokenizer, model and scorer at once."""

import dataclasses
import functools
import os
import pathlib

import jax
import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import fingerprint, user_path
from selftrain_jax.evaluation.likelihood import choice_log_probs, load_multiple_choice
from selftrain_jax.evaluation.score import score
from selftrain_jax.models import hf
from selftrain_jax.models.families import PRESETS
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import load_tokenizer

_MODEL = "EleutherAI/pythia-70m"
_REVISIONS = (None, "main", "step143000")
_QUESTION = "5d95d6b59f2d3501"  # its fingerprint
# From lm-evaluation-harness's own tests: pythia-70m in fp32, first test item of ARC-Easy, choices in order.
_LOG_LIKELIHOODS = (-41.9024, -42.9393, -33.9142, -37.0714)
_TOLERANCE = 1e-2
_TEMPLATE = "Question: {question}\nAnswer:"


@dataclasses.dataclass(frozen=True)
class ArcEasyCheck:
    """Log-likelihoods in nats of the choices of the first ARC-Easy test item."""

    found: tuple[float, ...]
    published: tuple[float, ...]

    @property
    def max_gap(self) -> float:
        return float(np.max(np.abs(np.subtract(self.found, self.published))))

    @property
    def ok(self) -> bool:
        return self.max_gap <= _TOLERANCE


def first_arc_easy_item(path: str | pathlib.Path, model: str, revision: str | None = None) -> dict:
    """The item of the published figures, read from the file of the ARC-Easy test set.

    Raises:
      InputError: the file does not start with that item, or `model` is not pythia-70m (by its name, or, for a local
        directory, by its shape) as it was at the end of training.
    """
    row = load_multiple_choice(path)[0]
    if fingerprint(row["question"]) != _QUESTION or len(row["choices"]) != len(_LOG_LIKELIHOODS):
        raise InputError(f"question file {path} must start with the first item of the ARC-Easy test set, as published")
    if user_path(model).is_dir():
        known = hf.load_config(model) == PRESETS["pythia-70m"]
    else:
        known = model == _MODEL and revision in _REVISIONS
    if not known:
        raise InputError(
            f"the ARC-Easy check knows the figures of {_MODEL} at the end of training (step143000) only, not of "
            f"{model}{'' if revision is None else f' at revision {revision}'}; leave --arc-easy out"
        )
    return row


def check_arc_easy(row: dict, model: str | os.PathLike, revision: str | None = None) -> ArcEasyCheck:
    """Scores the choices of `row` as lm-evaluation-harness does (no BOS), in fp32."""
    directory = resolve_model(model, revision)
    config, params = hf.load_pretrained(directory)
    scorer = functools.partial(score, jax.device_put(params), config, batch_size=len(row["choices"]))
    with jax.default_matmul_precision("highest"):
        found = choice_log_probs(scorer, config, load_tokenizer(directory), [row], _TEMPLATE, add_bos=False)[0]
    return ArcEasyCheck(tuple(found.tolist()), _LOG_LIKELIHOODS)


def format_check(check: ArcEasyCheck) -> str:
    """A table of ours against the published figures."""
    lines = [f"{'ARC-Easy, first item: log-likelihood':40} {'ours':>10} {'published':>10}"]
    for number, (found, published) in enumerate(zip(check.found, check.published), 1):
        lines.append(f"{f'choice {number}':40} {found:10.4f} {published:10.4f}")
    return "\n".join(lines)
