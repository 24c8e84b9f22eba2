"""Everything that is measured on one model, item by item, so that models can be compared in pairs afterwards."""

import dataclasses
import functools
import pathlib
from typing import Any, Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.texts import load_texts
from selftrain_jax.distributed import job
from selftrain_jax.distributed.mesh import is_local
from selftrain_jax.evaluation import approximate, free_running, likelihood, membership, memorization
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.tokenizer import load_tokenizer


def read_inputs(settings, find: Callable[[str], pathlib.Path], config: DecoderConfig) -> tuple[dict, dict, dict, list]:
    """Texts, questions and minimal pairs by name, and the probes; `InputError` for the first file that is unusable, and
    for settings that do not fit the probes or the model."""
    if settings.texts and settings.context_len > config.max_position:
        raise InputError(
            f"evaluate context_len={settings.context_len} is longer than the model's context of {config.max_position}"
        )
    inputs = (
        {name: load_texts(find(path)) for name, path in settings.texts.items()},
        {name: likelihood.load_multiple_choice(find(path)) for name, path in settings.multiple_choice.items()},
        {name: likelihood.load_minimal_pairs(find(path)) for name, path in settings.minimal_pairs.items()},
        memorization.load_probes(find(settings.probes), config, add_bos=settings.add_bos) if settings.probes else [],
    )
    probes = inputs[-1]
    shortest = min((len(p.suffix) for p in probes), default=0)
    if probes and settings.suffix_lengths and settings.suffix_lengths[-1] > shortest:
        raise InputError(
            f"evaluate suffix_lengths={settings.suffix_lengths} go beyond the shortest suffix, which has {shortest} "
            "tokens"
        )
    groups = {p.group for p in probes}
    if settings.nonmembers and (settings.nonmembers not in groups or len(groups) < 2):
        raise InputError(
            f"evaluate nonmembers={settings.nonmembers!r} must be one of several groups of probes, of "
            f"{', '.join(sorted(groups)) or 'none'}"
        )
    return inputs


def evaluate_model(
    model: tuple[Any, Any],
    tokenizer_source: str | pathlib.Path,
    settings,
    find: Callable[[str], pathlib.Path],
    directory: pathlib.Path,
    *,
    mesh: Mesh,
    name: str,
    limit: int | None = None,
) -> dict[str, Any]:
    """Measures `model` (config, params) and writes its `Items` into `directory`.

    Args:
      limit: cut every suite, and the probes, to so many items, evenly spread, without a progress bar.

    Returns:
      Means, for the manifest.
    """
    from tqdm import tqdm

    config, params = model
    tokenizer = load_tokenizer(tokenizer_source)
    bos = config.bos_token_id if settings.add_bos else None
    texts, questions, pairs, probes = read_inputs(settings, find, config)
    items = Items({}, {}, {}, {}, None)
    members, index = None, np.arange(len(probes))
    if limit is not None:
        texts, questions, pairs = (
            {name: _some(rows, limit)[0] for name, rows in kind.items()} for kind in (texts, questions, pairs)
        )
        probes, index = _some(probes, limit)
    scorer = functools.partial(
        score, params, config, mesh=mesh, batch_size=settings.batch_size, dtype=jnp.dtype(settings.dtype)
    )
    summary: dict[str, Any] = {}
    total = len(texts) + len(questions) + len(pairs) + bool(probes)
    with tqdm(total=total, desc=f"evaluate {name}", unit="suite", dynamic_ncols=True, disable=limit is not None) as bar:
        for suite, rows in questions.items():
            hits = likelihood.multiple_choice(
                scorer, config, tokenizer, rows, settings.template, add_bos=settings.add_bos
            )
            for rule in settings.rules:
                items.capability[suite, rule] = hits[rule]
            bar.update()
        for suite, rows in pairs.items():
            items.capability[suite, "acc"] = likelihood.minimal_pairs(scorer, config, tokenizer, rows)
            bar.update()
        for set_name, documents in texts.items():
            found = likelihood.text_likelihood(scorer, config, tokenizer, documents, context_len=settings.context_len)
            items.nll[set_name] = found.nll, found.num_tokens
            summary[f"nll/{set_name}"] = found.nll_per_token
            for unit in ("bits_per_byte", "bits_per_char", "word_perplexity"):
                summary[f"{unit}/{set_name}"] = getattr(found, unit)
            bar.update()
        if probes:
            found = memorization.extract(scorer, probes, bos_token_id=bos)
            items.probes.update(vars(found), index=index, group=np.array([p.group for p in probes]))
            items.probes["offset"] = np.array([-1 if p.offset is None else p.offset for p in probes])
            summary["extraction/all"] = float(found.exact.mean())
            if settings.free_running:
                written = free_running.continue_greedily(
                    params,
                    config,
                    probes,
                    bos_token_id=bos,
                    mesh=mesh,
                    batch_size=settings.batch_size,
                    dtype=jnp.dtype(settings.dtype),
                )
                close = approximate.approximate_match(probes, written, tokenizer)
                items.probes.update(vars(close), graded=free_running.graded_score(probes, written))
            if settings.nonmembers:
                members = np.array([p.group != settings.nonmembers for p in probes])
                items.membership.update(_attacks(scorer, probes, tokenizer, bos))
            bar.update()
    for (suite, rule), hits in items.capability.items():
        summary[f"capability/{suite}" + f":{rule}" * (rule != "acc")] = float(hits.mean())
    if is_local(mesh) or job.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(items, members=members).save(directory)
    return summary


def _some(rows: list, limit: int) -> tuple[list, np.ndarray]:
    """At most `limit` of `rows`, evenly spread, and their indices."""
    index = np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))
    return [rows[i] for i in index], index


def _attacks(scorer, probes, tokenizer, bos) -> dict[str, np.ndarray]:
    """Scores by attack, for the whole of every probe, prefix and suffix."""
    sequences = [np.concatenate([p.prefix, p.suffix]) for p in probes]
    texts = tokenizer.batch_decode([ids.tolist() for ids in sequences])
    return membership.membership_scores(scorer, sequences, texts=texts, bos_token_id=bos)
