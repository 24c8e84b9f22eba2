"""Every family against transformers, on small random checkpoints that transformers itself wrote."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import hf, verify
from selftrain_jax.models.decoder import Decoder, KVCache, continue_cached
from selftrain_jax.models.families import FAMILIES, PRESETS
from selftrain_jax.models.files.hf_config import load_config, write_config
from selftrain_jax.training.step import positions_in_segment

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 20}

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GPT2 = {"vocab_size": 96, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}

# Windows are shorter than the prompts, patterns longer than one layer; one is cut off at the end.
CASES = {
    "llama": ("llama", SHAPE),
    "llama, 1 head": ("llama", SHAPE | {"num_key_value_heads": 1, "rope_parameters": LINEAR}),
    "llama, tied": ("llama", SHAPE | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama, biases": (
        "llama",
        SHAPE
        | {"num_key_value_heads": 4, "head_dim": 24, "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ),
    "mistral": ("mistral", SHAPE | {"sliding_window": 20}),
    "mistral, no window": ("mistral", SHAPE | {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", SHAPE | {"tie_word_embeddings": True}),
    "qwen2, window": ("qwen2", SHAPE | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 16}),
    "qwen3, yarn": ("qwen3", SHAPE | {"head_dim": 12, "attention_bias": True, "rope_parameters": YARN}),
    "olmo2": ("olmo2", SHAPE | {"num_key_value_heads": 4}),
    "olmo2, 2 heads": ("olmo2", SHAPE),
    "olmo3": (
        "olmo3",
        SHAPE
        | {
            "num_hidden_layers": 5,
            "sliding_window": 20,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN},
        },
    ),
    "smollm3": ("smollm3", SHAPE | {"num_hidden_layers": 5}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied": ("gpt2", GPT2 | {"tie_word_embeddings": False, "n_inner": 100}),
    "gemma2": ("gemma2", SHAPE | GEMMA),
    "gemma3": ("gemma3_text", SHAPE | GEMMA | {"num_key_value_heads": 1, "num_hidden_layers": 7}),
    "gemma3, linear": (
        "gemma3_text",
        SHAPE
        | GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": LINEAR | {"rope_theta": 1e6}, "sliding_attention": PLAIN},
        },
    ),
}


def reference(case):
    """(family table, transformers model far from its initialization, so that norms and biases matter)."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    import transformers

    name, fields = CASES[case]
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, family.model_class)(getattr(transformers, family.config_class)(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std().nan_to_num(1.0).clamp(min=0.3) * torch.randn(parameter.shape)
    return family, model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(case)` is (family, transformers model, its directory)."""
    made = {}

    def of(case):
        if case not in made:
            family, model = reference(case)
            directory = tmp_path_factory.mktemp("family") / "model"
            model.save_pretrained(directory)
            made[case] = family, model, directory
        return made[case]

    return of


@pytest.mark.parametrize("case", CASES)
def test_logits_and_hidden_states_are_those_of_transformers(saved, case):
    _, model, directory = saved(case)
    found = verify.verify(directory, dtypes=("fp32",))
    assert found.ok and found.first_divergence is None, verify.format_tables(found)
    assert found.largest_logit > 0.5
    assert load_config(directory).num_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_model_bit_for_bit_and_without_a_warning(saved, tmp_path, case, recwarn):
    import torch
    import transformers

    family, model, directory = saved(case)
    config, params = hf.load_pretrained(directory)
    hf.save_pretrained(tmp_path / "out", config, params)
    assert load_config(tmp_path / "out") == config
    loaded, info = getattr(transformers, family.model_class).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and not recwarn.list
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    tokens = torch.arange(60)[None] % 90
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_packing_and_windows(saved, case):
    """In one go, since they share the compiled model: rows are 60 tokens, windows 20."""
    config, params = hf.load_pretrained(saved(case)[2])
    params = jax.tree.map(jnp.asarray, params)
    model = Decoder(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 60)), jnp.int32)

    @jax.jit
    def logits(tokens, segments=None):
        positions = None if segments is None else positions_in_segment(segments)
        hidden = model.apply({"params": params}, tokens, segment_ids=segments, positions=positions)
        return model.apply({"params": params}, hidden, method="logits")

    whole = logits(tokens)
    tolerance = 1e-5 * float(jnp.abs(whole).max())
    step = jax.jit(lambda tokens, cache, at: continue_cached(model, params, tokens, cache, at))
    cache = KVCache.zeros(config, 2, 64)
    assert cache.keys[0].shape == (2, config.num_kv_heads, 64, config.head_dim)
    found, cache = step(tokens[:, :32], cache, 0)
    np.testing.assert_allclose(found, whole[:, 31], rtol=0, atol=tolerance)
    for at in range(32, 60):
        found, cache = step(tokens[:, at : at + 1], cache, at)
        np.testing.assert_allclose(found, whole[:, at], rtol=0, atol=tolerance)

    segments = jnp.where(jnp.arange(60) < 23, 0, 1)[None].repeat(2, axis=0)
    packed = logits(tokens, segments)
    np.testing.assert_allclose(packed[:, :23], whole[:, :23], rtol=0, atol=tolerance)
    alone = logits(jnp.pad(tokens[:, 23:], ((0, 0), (0, 23))))[:, :37]
    np.testing.assert_allclose(packed[:, 23:], alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_stored_and_read_back(tmp_path, name):
    config = PRESETS[name]
    write_config(tmp_path, config, "bfloat16")
    assert load_config(tmp_path) == config
    assert config.family == json.loads((tmp_path / "config.json").read_text())["model_type"]


REFUSED = [
    ("llama", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ("llama", {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantiz"),
    ("llama", {"eos_token_id": None}, "eos_token_id"),
    ("llama", {"eos_token_id": 96}, "eos_token_id=96"),
    ("llama", {"bos_token_id": [1, 2]}, "bos_token_id"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    ("mixtral", {}, "model_type='mixtral'"),
    ("gemma3", {"text_config": {"vocab_size": 96}}, "text model"),
    ("qwen2_moe", {}, "model_type='qwen2_moe'"),
]


@pytest.mark.parametrize("model_type, fields, named", REFUSED, ids=lambda value: str(value)[:40])
def test_what_would_change_the_computation_is_refused_by_name(tmp_path, model_type, fields, named):
    shape = GPT2 if model_type == "gpt2" else SHAPE
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": model_type} | fields))
    with pytest.raises(InputError) as error:
        load_config(tmp_path)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_switch_that_a_family_does_not_have_cannot_be_stored(tmp_path):
    config = dataclasses.replace(PRESETS["llama-3.2-1b"], qk_norm="head")
    with pytest.raises(InputError, match="llama.*qk_norm='head'"):
        write_config(tmp_path, config, "float32")
    assert not list(tmp_path.iterdir())


def test_special_tokens_come_from_both_files(tmp_path):
    fields = SHAPE | {"model_type": "qwen2", "bos_token_id": None, "eos_token_id": 5}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5, 6]}))
    config = load_config(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.stop_ids) == (5, 5, (5, 6, 7))
    write_config(tmp_path, config, "float32")
    assert load_config(tmp_path) == config
