"""Everything that is measured on one model, item by item, so that models can be compared in pairs afterwards."""

import functools
import io
import pathlib
from typing import Any, Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.data.texts import load_texts
from selftrain_jax.evaluation import likelihood, memorization
from selftrain_jax.evaluation.score import score
from selftrain_jax.files import write_atomic
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.tokenizer import load_tokenizer


def read_inputs(settings, find: Callable[[str], pathlib.Path], config: ModelConfig) -> tuple[dict, dict, dict, list]:
    """Texts, questions and minimal pairs by name, and the probes; `InputError` for the first file that is unusable."""
    return (
        {name: load_texts(find(path)) for name, path in settings.texts.items()},
        {name: likelihood.load_multiple_choice(find(path)) for name, path in settings.multiple_choice.items()},
        {name: likelihood.load_minimal_pairs(find(path)) for name, path in settings.minimal_pairs.items()},
        memorization.load_probes(find(settings.probes), config, add_bos=settings.add_bos) if settings.probes else [],
    )


def evaluate_model(
    model: tuple[Any, Any],
    tokenizer_source: str | pathlib.Path,
    settings,
    find: Callable[[str], pathlib.Path],
    directory: pathlib.Path,
    *,
    mesh: Mesh,
    name: str,
) -> dict[str, Any]:
    """Measures `model` (config, params) and writes `items.npz` into `directory`.

    Its arrays, one entry per item: "capability/<suite>" bool, "capability/<suite>:acc_norm" bool, "nll/<set>" and
    "nll/<set>:tokens" per window, and "probe/<field>" for the fields of `memorization.Extraction`.

    Returns:
      Means, for the manifest.
    """
    from tqdm import tqdm

    config, params = model
    tokenizer = load_tokenizer(tokenizer_source)
    bos = config.bos_token_id if settings.add_bos else None
    texts, questions, pairs, probes = read_inputs(settings, find, config)
    scorer = functools.partial(
        score, params, config, mesh=mesh, batch_size=settings.batch_size, dtype=jnp.dtype(settings.dtype)
    )
    items: dict[str, np.ndarray] = {}
    summary: dict[str, Any] = {}
    total = len(texts) + len(questions) + len(pairs) + bool(probes)
    with tqdm(total=total, desc=f"evaluate {name}", unit="suite", dynamic_ncols=True) as bar:
        for suite, rows in questions.items():
            hits = likelihood.multiple_choice(scorer, config, tokenizer, rows, settings.template, add_bos=settings.add_bos)
            for rule in settings.rules:
                items[f"capability/{suite}" + (":acc_norm" if rule == "acc_norm" else "")] = hits[rule]
            bar.update()
        for suite, rows in pairs.items():
            items[f"capability/{suite}"] = likelihood.minimal_pairs(scorer, config, tokenizer, rows)
            bar.update()
        for set_name, documents in texts.items():
            found = likelihood.text_likelihood(scorer, config, tokenizer, documents)
            items[f"nll/{set_name}"], items[f"nll/{set_name}:tokens"] = found.nll, found.num_tokens
            summary[f"nll/{set_name}"] = found.nll_per_token
            summary[f"bits_per_byte/{set_name}"] = found.bits_per_byte
            bar.update()
        if probes:
            found = memorization.extract(scorer, probes, bos_token_id=bos)
            items |= {f"probe/{field}": values for field, values in vars(found).items()}
            summary["extraction/all"] = float(found.exact.mean())
            bar.update()
    summary |= {key: float(hits.mean()) for key, hits in items.items() if key.startswith("capability/")}
    buffer = io.BytesIO()
    np.savez(buffer, **items)
    write_atomic(directory / "items.npz", buffer.getvalue())
    return summary
