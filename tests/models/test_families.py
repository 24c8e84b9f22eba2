"""Every family against transformers, on small random checkpoints that transformers itself wrote."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import hf, verify
from selftrain_jax.models.decoder import Decoder, KVCache, continue_cached, param_shapes
from selftrain_jax.models.families import PRESETS
from selftrain_jax.models.files.hf_config import load_config, write_config
from selftrain_jax.training.step import next_token_loss, positions_in_segment
from tests.models.references import CASES, GPT2, MORE, PLAIN, SHAPE, reference

EVERY_CASE = [*CASES, *(pytest.param(case, marks=pytest.mark.large) for case in MORE)]
LENGTH, STEP, CUT_AT = 60, 4, 23


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(case)` is (family, transformers model, its directory)."""

    @functools.cache
    def of(case):
        family, model = reference(case)
        directory = tmp_path_factory.mktemp("family") / "model"
        model.save_pretrained(directory)
        return family, model, directory

    return of


# Compiling is what costs time here, and costs half of it with little optimization.
QUICKLY = {"xla_backend_optimization_level": 0}
TOKENS = np.random.default_rng(0).integers(0, 96, (2, LENGTH), dtype=np.int32)


@functools.partial(jax.jit, static_argnames="config", compiler_options=QUICKLY)
def all_passes(config, params, tokens):
    """All that is compared, as one program: the states of `hidden_states`; logits of whole rows, of rows that two
    documents share, and of the second document alone; logits after every `STEP` tokens given to decoding with a cache.
    """
    model = Decoder(config)
    states = [state for _, state in verify.hidden_states(config, params, tokens)]
    segments = jnp.zeros((3, 2, LENGTH), jnp.int32).at[1, :, CUT_AT:].set(1).reshape(6, LENGTH)
    alone = jnp.pad(tokens[:, CUT_AT:], ((0, 0), (0, CUT_AT)))
    rows, positions = jnp.concatenate([tokens, tokens, alone]), positions_in_segment(segments)
    hidden = model.apply({"params": params}, rows, segment_ids=segments, positions=positions)
    whole, packed, alone = jnp.split(model.apply({"params": params}, hidden, method="logits"), 3)

    def step(cache, at):
        given = jax.lax.dynamic_slice_in_dim(tokens, at, STEP, axis=1)
        logits, cache = continue_cached(model, params, given, cache, at)
        return cache, logits

    _, cached = jax.lax.scan(step, KVCache.zeros(config, 2, 64), jnp.arange(0, LENGTH, STEP))
    return states, whole, packed, alone[:, : LENGTH - CUT_AT], jnp.swapaxes(cached, 0, 1)


@pytest.fixture(scope="module")
def passes(saved):
    """`passes(case)` is what `all_passes` gives for the checkpoint of that case."""

    @functools.cache
    def of(case):
        return jax.tree.map(np.asarray, all_passes(*hf.load_pretrained(saved(case)[2]), TOKENS))

    return of


@pytest.mark.parametrize("case", EVERY_CASE)
def test_logits_and_hidden_states_are_those_of_transformers(saved, passes, case):
    """Within `verify`'s bounds, and by its own walk over the layers."""
    _, model, directory = saved(case)
    states, logits, *_ = passes(case)
    expected_logits, expected_states = verify._reference(directory, list(TOKENS[:, None]), "fp32")
    for found, expected in zip(states, map(np.concatenate, zip(*expected_states)), strict=True):
        assert np.abs(found - expected).max() <= verify.RELATIVE_TOLERANCE * np.abs(expected).max()
    largest = np.abs(expected_logits).max()
    assert largest > 0.5
    tolerance = max(verify.LOGIT_TOLERANCE, verify.RELATIVE_TOLERANCE * largest)
    np.testing.assert_allclose(np.concatenate(logits), expected_logits, rtol=0, atol=tolerance)
    assert load_config(directory).num_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", EVERY_CASE)
def test_an_export_is_the_model_bit_for_bit_and_without_a_warning(saved, tmp_path, case, recwarn):
    import torch
    import transformers

    family, model, directory = saved(case)
    config, params = hf.load_pretrained(directory)
    hf.save_pretrained(tmp_path / "out", config, params)
    assert load_config(tmp_path / "out") == config
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and not recwarn.list
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    tokens = torch.arange(60)[None] % 90
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_decoding_with_a_cache_is_the_whole_pass(passes, case):
    _, whole, _, _, cached = passes(case)
    np.testing.assert_allclose(cached, whole[:, STEP - 1 :: STEP], rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("case", EVERY_CASE)
def test_packed_documents_do_not_see_each_other(passes, case):
    _, whole, packed, alone, _ = passes(case)
    tolerance = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(packed[:, :CUT_AT], whole[:, :CUT_AT], rtol=0, atol=tolerance)
    np.testing.assert_allclose(packed[:, CUT_AT:], alone, rtol=0, atol=tolerance)
    assert np.abs(packed[:, CUT_AT:] - whole[:, CUT_AT:]).max() > 0.1


@pytest.mark.parametrize("case", EVERY_CASE)
def test_no_gradient_is_summed_in_half_precision(saved, case):
    """Over all positions of a batch: CPUs do it in fp32 all the same, GPUs that add in bfloat16 do not."""
    config = load_config(saved(case)[2])
    loss, params = next_token_loss(Decoder(config, dtype=jnp.bfloat16)), param_shapes(config)
    for segments in ({}, {"segment_ids": np.zeros_like(TOKENS)}):
        text = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(params, {"tokens": TOKENS} | segments))
        assert "f32" in text and "bf16" in text
        assert not re.findall(r"bf16\[[\d,]*\] = (?:reduce_sum|scatter-add|cumsum)\b.*", text)


@pytest.mark.parametrize("name", CASES)
def test_caches_hold_heads_of_keys_and_values_only(saved, name):
    config = load_config(saved(name)[2])
    assert KVCache.zeros(config, 2, 64).keys[0].shape == (2, config.num_kv_heads, 64, config.head_dim)


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
    ("mistral", {"sliding_window": 0}, "sliding_window=0"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar=-1"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
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


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_what_a_class_of_transformers_has_as_default_yields_to_generation_config(tmp_path, family):
    """Fields that config.json leaves out, and generation_config.json names."""
    ends = {"bos_token_id": 11, "eos_token_id": [12, 13]}
    shape = {name: value for name, value in SHAPE.items() if name not in ends} | {"model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    config = load_config(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.stop_ids) == (11, 12, (12, 13))
    (tmp_path / "config.json").write_text(json.dumps(shape | {"eos_token_id": 14}))
    assert load_config(tmp_path).stop_ids == (12, 13, 14)
    write_config(tmp_path, config, "float32")
    assert load_config(tmp_path) == config
