"""No figure depends on how the work was cut up: batch size, order of items, length buckets, mesh."""

import functools

import numpy as np
import pytest

from selftrain_jax.distributed.mesh import make_mesh, named_shardings, to_global
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation import batches
from selftrain_jax.evaluation.discoverable import sampled_suffix_log_probs
from selftrain_jax.evaluation.free_running import continue_greedily, graded_score
from selftrain_jax.evaluation.likelihood import text_likelihood
from selftrain_jax.evaluation.membership import membership_scores
from selftrain_jax.evaluation.memorization import Probe, extract, extraction_strength
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.decoder import param_axes
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import ONE_LAYER, initial

CONFIG = ONE_LAYER
SAMPLING = SamplingConfig(temperature=0.9, top_k=20, min_new_tokens=0)


def tokenize(texts, **_):
    return {"input_ids": [[ord(c) - 64 for c in text] for text in texts]}


@pytest.fixture(scope="module")
def params():
    params = initial(CONFIG)
    params["head"]["kernel"] *= 8
    return params


@pytest.fixture(scope="module")
def probes():
    """Of many lengths, every third continued as the model itself would, so that some are extracted."""
    rng = np.random.default_rng(0)
    lengths = zip(rng.integers(1, 9, 30), rng.integers(1, 9, 30))
    return [Probe(rng.integers(1, 64, a, dtype=np.int32), rng.integers(1, 64, b, dtype=np.int32)) for a, b in lengths]


def figures(params, probes, texts, **options):
    """Every figure of every item, by name, in the order of the items given."""
    scorer = functools.partial(score, params, CONFIG, **options)
    sequences = [np.concatenate([p.prefix, p.suffix]) for p in probes]
    likelihood = text_likelihood(scorer, CONFIG, tokenize, texts, context_len=9)
    return {
        **vars(extract(scorer, probes)),
        "sequence strength": extraction_strength(scorer, sequences),
        "graded": graded_score(probes, continue_greedily(params, CONFIG, probes, **options)),
        "discoverable": sampled_suffix_log_probs(scorer, probes, SAMPLING),
        **membership_scores(scorer, sequences),
        "nats per window": likelihood.nll,
        "bits per byte": np.array([likelihood.bits_per_byte]),
    }


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    return ["".join(chr(c) for c in rng.integers(65, 128, n)) for n in (1, 16, 17, 50)]


@pytest.fixture(scope="module")
def expected(params, probes, texts):
    own = continue_greedily(params, CONFIG, probes, batch_size=32)
    mixed = [Probe(p.prefix, w if i % 3 == 0 else p.suffix) for i, (p, w) in enumerate(zip(probes, own))]
    found = figures(params, mixed, texts, batch_size=32)
    assert (
        10 <= found["exact"].sum() < 20
        and not extract(functools.partial(score, params, CONFIG), mixed).ambiguous().any()
    )
    return mixed, found


@pytest.mark.parametrize("how", ["another order, odd batches, finer buckets", "mesh"])
def test_no_figure_changes(monkeypatch, params, texts, expected, how):
    probes, wanted = expected
    options, order = {"batch_size": 5}, np.arange(len(probes))
    if how == "mesh":
        mesh = make_mesh(MeshConfig(2, 2, 2))
        params = to_global(mesh, params, named_shardings(mesh, param_axes(CONFIG), params))
        options = {"batch_size": 32, "mesh": mesh}
    else:
        monkeypatch.setattr(batches, "_ROUND", 8)
        order = np.random.default_rng(2).permutation(len(probes))
    found = figures(params, [probes[i] for i in order], texts, **options)
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        reference = wanted[name][order] if len(values) == len(probes) else wanted[name]
        # Sums over 8 tokens of some 10 nats each are compared relative to their size.
        np.testing.assert_allclose(values, reference, rtol=1e-5, atol=1e-5, err_msg=name)
