"""The model computes what transformers computes, in both directions of conversion and with its cache.

The bound of 1e-4 on logits of order 1 is some ten times the rounding of an fp32 pass summed in another order, and a
tenth or less of what tanh GELU, a misplaced head or an unrotated dimension changes.
"""

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from selftrain_jax.models import decoder, hf
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.families import PRESETS
from selftrain_jax.sampling import decode
from selftrain_jax.sampling.continuation import continue_prompts
from tests.models.references import neox_config
from tests.ties import assert_greedy

TOLERANCE = 1e-4
SMALL = DecoderConfig(vocab_size=512, hidden_size=128, num_layers=2, num_heads=4, intermediate_size=512)
VARIANTS = [
    dataclasses.replace(SMALL, pattern=(Layer(Rotary(part)),), parallel_residual=parallel, tie_embeddings=tied)
    for part, parallel, tied in itertools.product((0.25, 1.0), (True, False), (False, True))
]


def describe(config):
    residual = "parallel" if config.parallel_residual else "sequential"
    return f"rotary{config.rotaries[0].fraction}-{residual}-{'tied' if config.tie_embeddings else 'untied'}"


def reduced(name):
    """A preset with its hidden size and heads, but few layers and, from 410m on, few words and a narrow MLP."""
    config = PRESETS[name]
    if config.hidden_size < 1024:
        return dataclasses.replace(config, num_layers=2)
    num_layers = 1 if config.hidden_size > 2048 else 2
    return dataclasses.replace(config, num_layers=num_layers, vocab_size=512, intermediate_size=1000)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")


@pytest.fixture
def scratch():
    """A directory that does not outlive the test: pytest keeps its own for several runs, and these hold gigabytes."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def reference_model(torch, config):
    """A transformers model far from its initialization: norms are not the identity, biases not zero."""
    import transformers
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = transformers.GPTNeoXForCausalLM(neox_config(config)).eval()
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)

    def fill(parameter, middle, spread):
        parameter.uniform_(middle - 3**0.5 * spread, middle + 3**0.5 * spread, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm.weight" in name or "layer_norm.weight" in name:
                fill(parameter, 1.0, 0.3)
            elif name.endswith("bias"):
                fill(parameter, 0.0, 0.5)
            elif "embed" in name and not config.tie_embeddings:
                fill(parameter, 0.0, 1.0)
            else:
                fill(parameter, 0.0, 1.5 / parameter.shape[-1] ** 0.5)
    return model


def random_tokens(config, rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length), dtype=np.int32)


@functools.partial(jax.jit, static_argnames="config")
def forward(config, params, tokens):
    model = decoder.Decoder(config)
    return model.apply({"params": params}, model.apply({"params": params}, tokens), method="logits")


def reference_logits(torch, model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def assert_parity(torch, config, scratch, tokens):
    """transformers -> import -> same logits; -> export -> transformers -> same logits, and no complaint on loading."""
    import transformers

    reference = reference_model(torch, config)
    expected = reference_logits(torch, reference, tokens)
    reference.save_pretrained(scratch / "reference")
    del reference
    loaded_config, params = hf.load_pretrained(scratch / "reference")
    assert loaded_config == config
    np.testing.assert_allclose(forward(config, params, tokens), expected, rtol=0, atol=TOLERANCE)

    hf.save_pretrained(scratch / "export", config, params)
    del params
    exported, loading = transformers.AutoModelForCausalLM.from_pretrained(scratch / "export", output_loading_info=True)
    assert not any(loading.values()), loading
    np.testing.assert_array_equal(reference_logits(torch, exported.eval(), tokens), expected)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("pythia-14m", "pythia-1b", "pythia-12b") else pytest.param(name, marks=pytest.mark.large)
        for name, config in PRESETS.items()
        if config.family == "gpt_neox"  # test_families.py holds the others
    ],
)
def test_presets_match_transformers(torch, scratch, name):
    config = reduced(name)
    assert_parity(torch, config, scratch, random_tokens(config, 2, 16))


@pytest.mark.parametrize("config", VARIANTS, ids=describe)
def test_variants_match_transformers(torch, scratch, config):
    assert_parity(torch, config, scratch, random_tokens(config, 2, 300))


def test_whole_context_matches_transformers(torch, scratch):
    assert_parity(torch, SMALL, scratch, random_tokens(SMALL, 1, SMALL.max_position))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_match_transformers(torch, scratch, dtype):
    """Published Pythia files are fp16: both sides compute in fp32 from the same rounded weights."""
    import transformers

    reference_model(torch, SMALL).to(getattr(torch, dtype)).save_pretrained(scratch / "half")
    reference = transformers.AutoModelForCausalLM.from_pretrained(scratch / "half", dtype=torch.float32).eval()
    tokens = random_tokens(SMALL, 2, 16)
    config, params = hf.load_pretrained(scratch / "half")
    expected = reference_logits(torch, reference, tokens)
    np.testing.assert_allclose(forward(config, params, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 300_000], ids=["single", "sharded"])
def test_transformers_loads_and_runs_exports_silently(torch, scratch, caplog, recwarn, shard_bytes):
    import transformers

    hf.save_pretrained(scratch / "export", SMALL, random_params(SMALL), max_shard_bytes=shard_bytes)
    transformers.logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            model = transformers.AutoModelForCausalLM.from_pretrained(scratch / "export")
            model.generate(torch.ones((1, 3), dtype=torch.long), max_new_tokens=2, do_sample=False, pad_token_id=0)
    finally:
        transformers.logging.disable_propagation()
    assert model.dtype == torch.float32
    assert not caplog.messages and not [w.message for w in recwarn if "transformers" in w.filename]


@pytest.mark.parametrize("config", [VARIANTS[0], VARIANTS[-2]], ids=describe)
def test_greedy_decoding_matches_transformers(torch, scratch, config):
    """64 tokens after each of 20 prompts, each of them the best one of transformers' model after those before it."""
    reference = reference_model(torch, config)
    reference.save_pretrained(scratch / "reference")
    _, params = hf.load_pretrained(scratch / "reference")
    prompts = random_tokens(config, 20, 12)
    found = np.array(continue_prompts(params, config, prompts, 64, stop_at_eos=False))
    logits = reference_logits(torch, reference, np.concatenate([prompts, found], axis=1))
    assert_greedy(found, logits[:, 11:-1], 2 * TOLERANCE)
    assert len(np.unique(found)) > 64  # the model wanders; agreement on a constant would prove little


def random_params(config, seed=0):
    """Parameters far from their initialization, as in `reference_model`, without PyTorch."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        module, name = path[-2].key, path[-1].key
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if name == "scale":
            return 1 + 0.3 * noise
        if name == "bias":
            return 0.5 * noise
        if name == "embedding" and not config.tie_embeddings:
            return noise
        return noise * 1.5 / (config.intermediate_size if module == "down" else config.hidden_size) ** 0.5

    return jax.tree_util.tree_map_with_path(fill, decoder.param_shapes(config))


@functools.partial(jax.jit, static_argnames="config")
def advance(config, params, tokens, cache, position):
    """Logits of the last of `tokens`."""
    return decoder.continue_cached(decoder.Decoder(config), params, tokens, cache, position)


# Four of the eight variants hold every pair of switches; what attention writes depends on two of the three.
PAIRS = [VARIANTS[i] for i in (0, 3, 5, 6)]


@pytest.mark.parametrize(
    "config, prefill",
    [(SMALL, 1), *((c, 7) if c in PAIRS else pytest.param(c, 7, marks=pytest.mark.large) for c in VARIANTS)],
)
def test_cached_decoding_equals_the_full_forward(config, prefill):
    """Token by token after a prefill of any length, across a cache that grows on the way."""
    params, tokens = random_params(config), random_tokens(config, 3, 24)
    logits, cache = advance(config, params, tokens[:, :prefill], decoder.KVCache.zeros(config, 3, 16), 0)
    parts = [logits]
    for position in range(prefill, tokens.shape[1]):
        if position == 16:
            cache = decode.resize([cache], 32, None)
        logits, cache = advance(config, params, tokens[:, position : position + 1], cache, position)
        parts.append(logits)
    full = forward(config, params, tokens)
    np.testing.assert_allclose(np.stack(parts, axis=1), full[:, prefill - 1 :], rtol=0, atol=TOLERANCE)
    assert np.std(full) > 0.5  # logits of order 1, so the bound means something
