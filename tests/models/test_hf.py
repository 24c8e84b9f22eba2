"""Checkpoints survive the way in and out bit for bit; every broken one is refused with a line that names the fault."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers

from selftrain_jax.core.errors import InputWarning
from selftrain_jax.models import decoder, hf
from selftrain_jax.models.config import Layer, Rotary
from selftrain_jax.models.files.fingerprints import model_fingerprint, vocabulary_input
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer, tokenizer_fingerprint
from tests.models.checkpoints import (
    CONFIG,
    OLD_CONFIG,
    TIED,
    assert_same_bits,
    old_tensors,
    random_params,
    refuses,
    write_checkpoint,
    write_tokenizer,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 4000], ids=["single", "sharded"])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_export_then_import_is_bit_exact(tmp_path, config, shard_bytes, dtype):
    params = random_params(config, dtype)
    hf.save_pretrained(tmp_path / "model", config, params, max_shard_bytes=shard_bytes)
    loaded_config, loaded = hf.load_pretrained(tmp_path / "model", dtype=dtype)
    assert loaded_config == config
    assert_same_bits(loaded, params)
    assert (tmp_path / "model" / "model.safetensors").exists() == (shard_bytes > 4000)


def test_export_takes_device_arrays(tmp_path):
    params = random_params(CONFIG)
    hf.save_pretrained(tmp_path / "model", CONFIG, jax.tree.map(jax.numpy.asarray, params))
    assert_same_bits(hf.load_pretrained(tmp_path / "model")[1], params)


def test_shards_stay_below_the_limit_and_the_index_covers_them(tmp_path):
    limit = 8000  # bytes; above the largest tensor (48 x 16 fp32 = 3072)
    hf.save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG), max_shard_bytes=limit)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    stored = {}
    for path in (tmp_path / "model").glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(path)
        assert sum(x.nbytes for x in tensors.values()) <= limit
        stored |= dict.fromkeys(tensors, path.name)
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == 4 * CONFIG.num_params


@pytest.mark.parametrize("prefix", ["gpt_neox.", ""])
@pytest.mark.parametrize("head", ["embed_out.weight", "lm_head.weight"])
def test_old_checkpoints_load_under_every_naming(tmp_path, prefix, head):
    tensors = old_tensors(prefix, head)
    config, params = hf.load_pretrained(write_checkpoint(tmp_path / "old", tensors))
    assert config == CONFIG
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, decoder.param_shapes(CONFIG))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(params["head"]["kernel"], tensors[head].T)
    np.testing.assert_array_equal(params["embed"]["embedding"], tensors[f"{prefix}embed_in.weight"])
    up = tensors[f"{prefix}layers.1.mlp.dense_h_to_4h.weight"]
    np.testing.assert_array_equal(params["layers"]["up"]["kernel"][1], up.T)


def test_fused_projection_is_interleaved_per_head(tmp_path):
    """Rows of head n's query, key and value follow each other, as in GPT-NeoX; they are not global thirds."""
    tensors = old_tensors()
    _, params = hf.load_pretrained(write_checkpoint(tmp_path / "old", tensors))
    weight = tensors["gpt_neox.layers.0.attention.query_key_value.weight"]
    bias = tensors["gpt_neox.layers.0.attention.query_key_value.bias"]
    dense = tensors["gpt_neox.layers.0.attention.dense.weight"]
    size = CONFIG.head_dim
    for head in range(2):
        for part in range(3):
            rows = slice((3 * head + part) * size, (3 * head + part + 1) * size)
            np.testing.assert_array_equal(params["layers"]["qkv"]["kernel"][0, :, part, head], weight[rows].T)
            np.testing.assert_array_equal(params["layers"]["qkv"]["bias"][0, part, head], bias[rows])
        columns = slice(head * size, (head + 1) * size)
        np.testing.assert_array_equal(params["layers"]["out"]["kernel"][0, head], dense[:, columns].T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_stored_precision_survives_an_fp32_load(tmp_path, dtype):
    tensors = old_tensors(dtype=dtype)
    _, params = hf.load_pretrained(write_checkpoint(tmp_path / "old", tensors))
    np.testing.assert_array_equal(params["head"]["kernel"].astype(dtype).T, tensors["embed_out.weight"])


def test_bfloat16_is_read_in_a_fresh_process(tmp_path):
    """numpy knows bfloat16 only once ml_dtypes is imported, which this process has done already."""
    write_checkpoint(tmp_path / "old", old_tensors(dtype=ml_dtypes.bfloat16))
    code = f"from selftrain_jax.models import hf; print(hf.load_pretrained({str(tmp_path / 'old')!r})[0].num_layers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr
    assert "PyTorch" not in done.stderr


def test_importing_the_module_loads_no_heavy_library():
    code = "import sys, selftrain_jax.models.hf; print({'torch', 'transformers'} & set(sys.modules) or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "light", done.stderr


def test_tied_checkpoint_may_repeat_the_embedding_but_not_contradict_it(tmp_path):
    tensors = old_tensors()
    tied = OLD_CONFIG | {"tie_word_embeddings": True}
    different = write_checkpoint(tmp_path / "different", tensors, tied)
    refuses(lambda: hf.load_pretrained(different), "embed_out.weight", "tie_word_embeddings")
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"].copy()
    config, params = hf.load_pretrained(write_checkpoint(tmp_path / "same", tensors, tied))
    assert config == TIED and "head" not in params


@pytest.mark.parametrize("head", ["embed_out.weight", "lm_head.weight"])
def test_tied_weights_may_be_stored_as_the_output_layer_alone(tmp_path, head):
    tensors, tied = old_tensors(), OLD_CONFIG | {"tie_word_embeddings": True}
    tensors.pop("embed_out.weight")
    expected = hf.load_pretrained(write_checkpoint(tmp_path / "embedding", tensors, tied))
    tensors[head] = tensors.pop("gpt_neox.embed_in.weight")
    found = hf.load_pretrained(write_checkpoint(tmp_path / "head", tensors, tied))
    assert found[0] == expected[0] == TIED
    assert_same_bits(found[1], expected[1])


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, {}),
        ({"rotary_pct": 1.0, "rotary_emb_base": 500}, {"pattern": (Layer(Rotary(1.0, 500.0)),)}),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
                **{"rotary_pct": 1.0, "rotary_emb_base": 500},
            },
            {"pattern": (Layer(Rotary(1.0, 500.0)),)},
        ),
        ({"use_parallel_residual": False}, {"parallel_residual": False}),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        ({"attention_dropout": 0.1, "hidden_dropout": 0.1}, {}),
        ({"layer_norm_eps": 1e-6, "max_position_embeddings": 64}, {"norm_eps": 1e-6, "max_position": 64}),
        ({"bos_token_id": 1, "eos_token_id": [2]}, {"bos_token_id": 1, "eos_token_id": 2}),
    ],
)
def test_config_fields_reach_the_model_config(tmp_path, change, expected):
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | change))
    assert hf.load_config(tmp_path) == dataclasses.replace(CONFIG, **expected)


@pytest.mark.parametrize(
    "change, fields",
    [
        ({"rope_theta": 5e5, "partial_rotary_factor": 0.25}, "rope_theta=500000.0, partial_rotary_factor=0.25"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, "rotary_emb_base=10000"),
        ({"logit_scale": 2.0}, "logit_scale=2.0"),
    ],
)
def test_a_field_that_nothing_reads_is_named(tmp_path, change, fields):
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | change))
    with pytest.warns(InputWarning, match=f"nothing reads {re.escape(fields)};"):
        hf.load_config(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rotary_pct": 1.0, "rope_theta": 10000.0, "partial_rotary_factor": 1},
        {"n_ctx": 1024, "task_specific_params": {"text-generation": {"do_sample": True}}, "use_mrope": False},
        {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1, "transformers.js_config": {"a": 1}},
        {"cache_implementation": "hybrid", "_name_or_path": "x", "unsloth_fixed": True, "hidden_activation": "gelu"},
        {"auto_map": {"AutoConfig": {"nested": ["x"]}}, "name_or_path": "x", "quantization_config": None},
    ],
)
def test_fields_of_published_models_that_change_nothing_are_passed_over(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | change))
    hf.load_config(tmp_path)


def test_reading_a_configuration_again_makes_one_object_of_transformers(tmp_path, monkeypatch):
    """Each takes milliseconds, and a study reads hundreds."""
    model = write_checkpoint(tmp_path / "model", old_tensors())
    expected, made, init = hf.load_config(model), [], transformers.PretrainedConfig.__post_init__
    monkeypatch.setattr(
        transformers.PretrainedConfig, "__post_init__", lambda *args, **kwargs: (made.append(1), init(*args, **kwargs))
    )
    transformers.GPTNeoXConfig.from_dict({})
    one = made.copy()
    made.clear()
    assert hf.load_config(model) == expected and made == one


def test_a_number_of_labels_makes_no_list_of_them(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | {"num_labels": 2000}))
    labels, asked = transformers.PretrainedConfig.num_labels, []
    spy = property(labels.fget, lambda config, count: (asked.append(count), labels.fset(config, count)))
    monkeypatch.setattr(transformers.PretrainedConfig, "num_labels", spy)
    assert hf.load_config(tmp_path) == CONFIG and max(asked) <= 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "mixtral"}, ["model_type", "mixtral"]),
        ({"hidden_act": "gelu_new"}, ["hidden_act", "gelu_new"]),
        ({"attention_bias": False}, ["attention_bias"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_type", "dynamic"]),
        ({"eos_token_id": None}, ["eos_token_id"]),
        ({"bos_token_id": [0, 1]}, ["bos_token_id"]),
        ({"hidden_size": "wide"}, ["hidden_size"]),
        ({"rotary_pct": "some"}, ["some"]),
        ({"rotary_pct": 1.5}, ["fraction=1.5"]),
        ({"num_attention_heads": 3}, ["config.json"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ({"num_hidden_layers": 10_001}, ["num_hidden_layers=10001", "at most", "10000"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantized"]),
    ],
)
def test_unsupported_configurations_are_refused_by_field(tmp_path, change, words):
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | change))
    refuses(lambda: hf.load_config(tmp_path), "config.json", *words)


def test_config_file_faults(tmp_path):
    refuses(lambda: hf.load_config(tmp_path), "config.json", "not found")
    (tmp_path / "config.json").write_text('{"model_type": ')
    refuses(lambda: hf.load_config(tmp_path), "config.json", "JSON")
    (tmp_path / "config.json").write_text("[]")
    refuses(lambda: hf.load_config(tmp_path), "config.json", "model_type")


KEY = "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"


@pytest.mark.parametrize(
    "fault, words",
    [
        (lambda t: t.pop(KEY), [KEY.removeprefix("gpt_neox."), "missing"]),
        (lambda t: t.pop("embed_out.weight"), ["embed_out.weight", "missing"]),
        (lambda t: t.update({KEY: np.zeros(17, np.float16)}), [KEY, "(17,)", "(16,)"]),
        (lambda t: t.update({KEY: np.zeros(16, np.int8)}), [KEY, "I8"]),
        (lambda t: t.update({"gpt_neox.layers.2.input_layernorm.bias": t[KEY]}), ["layers.2.input_layernorm.bias"]),
        (lambda t: t.update({"score.weight": t[KEY]}), ["score.weight", "unexpected"]),
        (lambda t: t.update({"lm_head.weight": t["embed_out.weight"]}), ["lm_head.weight", "twice"]),
    ],
    ids=["missing", "no-head", "shape", "dtype", "extra-layer", "unexpected", "twice"],
)
def test_tensor_faults_are_refused_by_name(tmp_path, fault, words):
    tensors = old_tensors()
    fault(tensors)
    model = write_checkpoint(tmp_path / "old", tensors)
    refuses(lambda: hf.load_pretrained(model), model, *words)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-5], lambda data: data[:100], lambda data: b"", lambda data: b"version https://git-lfs.github"],
    ids=["truncated", "header-cut", "empty", "lfs-pointer"],
)
def test_unreadable_weight_files_are_refused(tmp_path, damage):
    path = write_checkpoint(tmp_path / "old", old_tensors()) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refuses(lambda: hf.load_pretrained(tmp_path / "old"), path)


def test_missing_weight_files_are_refused_with_the_way_out(tmp_path):
    model = write_checkpoint(tmp_path / "old", old_tensors())
    (model / "model.safetensors").unlink()
    refuses(lambda: hf.load_pretrained(model), model, "no weights", "model.safetensors", "unfinished")
    refuses(lambda: hf.load_pretrained(tmp_path / "none"), tmp_path / "none", "not found")


def test_an_adapter_beside_the_weights_is_said_to_be_left_out(tmp_path):
    model = write_checkpoint(tmp_path / "old", old_tensors())
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for read in (hf.check_pretrained, hf.load_pretrained):
        with pytest.warns(InputWarning, match="adapter beside the weights .* is not applied"):
            read(model)


def test_shard_faults_are_refused(tmp_path):
    model = tmp_path / "model"
    hf.save_pretrained(model, CONFIG, random_params(CONFIG), max_shard_bytes=8000)
    index = model / "model.safetensors.index.json"
    whole = index.read_text()
    for text, words in (
        ("{", ["JSON"]),
        ("{}", ["weight_map"]),
        (json.dumps({"weight_map": {"embed_in.weight": "../outside.safetensors"}}), ["../outside.safetensors"]),
        (json.dumps({"weight_map": {"embed_in.weight": "x" * 5_000}}), ["missing"]),
    ):
        index.write_text(text)
        (tmp_path / "outside.safetensors").write_bytes(b"")
        refuses(lambda: hf.load_pretrained(model), index, *words)
    index.write_text(whole)
    shard = min(model.glob("model-*.safetensors"))
    shard.unlink()
    refuses(lambda: hf.load_pretrained(model), shard.name, "missing")


def test_export_never_overwrites_and_accepts_an_empty_directory(tmp_path):
    params = random_params(CONFIG)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    refuses(lambda: hf.save_pretrained(tmp_path / "taken", CONFIG, params), tmp_path / "taken", "not empty")
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    hf.save_pretrained(tmp_path / "empty", CONFIG, params)
    assert hf.load_config(tmp_path / "empty") == CONFIG


def test_interrupted_export_leaves_nothing_behind(tmp_path, monkeypatch):
    saved = []

    def fail_on_the_second_shard(*args, **kwargs):
        if saved:
            raise OSError("disk full")
        saved.append(args)

    monkeypatch.setattr(safetensors.numpy, "save_file", fail_on_the_second_shard)
    monkeypatch.setattr(shutil, "copymode", lambda *args: None)
    model = tmp_path / "model"
    refuses(lambda: hf.save_pretrained(model, CONFIG, random_params(CONFIG), max_shard_bytes=8000), model, "disk full")
    assert saved and not list(tmp_path.iterdir())


def test_export_files_share_their_permissions(tmp_path):
    hf.save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG))
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1


def test_export_refuses_params_of_another_model(tmp_path):
    params = random_params(CONFIG)
    wider = dataclasses.replace(CONFIG, intermediate_size=41)
    refuses(lambda: hf.save_pretrained(tmp_path / "m", wider, params), "layers/up/kernel", "41")
    refuses(lambda: hf.save_pretrained(tmp_path / "m", CONFIG, random_params(TIED)), "head/kernel")
    assert not list(tmp_path.iterdir())


def test_tokenizer_needs_one_file_and_travels_with_the_export(tmp_path):
    source = write_tokenizer(tmp_path / "tokenizer")
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    hf.save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG), tokenizer_source=source)
    assert tokenizer_fingerprint(source) == tokenizer_fingerprint(tmp_path / "model")
    (source / "tokenizer_config.json").unlink()
    for directory in (source, tmp_path / "model"):
        tokenizer = load_tokenizer(directory)
        assert tokenizer("a c b").input_ids == [1, 3, 2]
        assert tokenizer.batch_decode([[1, 3], [2]]) == ["a c", "b"]
    assert tokenizer.eos_token_id == 0
    other = write_tokenizer(tmp_path / "other", words=("a", "c", "b"))
    assert tokenizer_fingerprint(source) != tokenizer_fingerprint(other)


def test_decoding_keeps_spaces_whatever_the_tokenizer_settings_say(tmp_path):
    source = write_tokenizer(tmp_path / "tokenizer", words=("a", "."))
    (source / "tokenizer_config.json").write_text(json.dumps({"clean_up_tokenization_spaces": True}))
    assert load_tokenizer(source).decode([1, 2]) == "a ."


def test_tokenizer_faults_are_refused(tmp_path):
    refuses(lambda: load_tokenizer(tmp_path), tmp_path / "tokenizer.json", "not found")
    refuses(lambda: tokenizer_fingerprint(tmp_path), "tokenizer.json")
    params = random_params(CONFIG)
    refuses(lambda: hf.save_pretrained(tmp_path / "m", CONFIG, params, tokenizer_source=tmp_path), "tokenizer.json")
    assert not (tmp_path / "m").exists()
    (tmp_path / "tokenizer.json").write_text("{}")
    refuses(lambda: load_tokenizer(tmp_path), tmp_path / "tokenizer.json")


def test_tokenizer_must_fit_the_embedding(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))  # 4 ids
    check_tokenizer(dataclasses.replace(CONFIG, vocab_size=4), tokenizer)
    refuses(lambda: check_tokenizer(dataclasses.replace(CONFIG, vocab_size=3), tokenizer), "4 ids", "vocab_size=3")


def test_model_fingerprint_follows_contents_not_place(tmp_path):
    params = random_params(CONFIG)
    hf.save_pretrained(tmp_path / "a", CONFIG, params)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert model_fingerprint(tmp_path / "a") == model_fingerprint(tmp_path / "b")
    params["final_norm"]["bias"][3] += 1
    hf.save_pretrained(tmp_path / "weights", CONFIG, params)
    hf.save_pretrained(tmp_path / "config", dataclasses.replace(CONFIG, norm_eps=1e-6), params)
    assert len({model_fingerprint(tmp_path / name) for name in ("a", "weights", "config")}) == 3


TOO_LARGE = [(np.float32, 1e6, "float16"), (np.float64, 1e300, "float32"), (np.float32, 3.4e38, "bfloat16")]


@pytest.mark.parametrize("stored, value, dtype", TOO_LARGE, ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.filterwarnings("error")
def test_a_cast_that_would_overflow_is_refused_by_name(tmp_path, stored, value, dtype):
    tensors = old_tensors(dtype=stored)
    tensors[KEY][3] = value
    model = write_checkpoint(tmp_path / "model", tensors)
    refuses(lambda: hf.load_pretrained(model, dtype=dtype), KEY, model, f"{value:.4g}", dtype)
    params = random_params(CONFIG, stored)
    params["layers"]["down"]["bias"][1, 3] = value
    refuses(lambda: hf.save_pretrained(tmp_path / "out", CONFIG, params, dtype=dtype), KEY, f"{value:.4g}", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_no_overflow(tmp_path, value):
    params = random_params(CONFIG)
    params["layers"]["down"]["bias"][1, 3] = value
    hf.save_pretrained(tmp_path / "model", CONFIG, params, dtype="float16")
    with pytest.warns(InputWarning, match=KEY):
        _, found = hf.load_pretrained(tmp_path / "model", dtype="float16")
    np.testing.assert_array_equal(found["layers"]["down"]["bias"][1, 3], np.float16(value))


def test_dtypes_are_those_of_weights(tmp_path):
    model = write_checkpoint(tmp_path / "old", old_tensors())
    assert_same_bits(hf.load_pretrained(model, dtype=None)[1], hf.load_pretrained(model)[1])
    for dtype in ("foo", np.int8, "complex64"):
        refuses(lambda: hf.load_pretrained(model, dtype=dtype), "dtype=", "float32, bfloat16")
        refuses(lambda: hf.save_pretrained(tmp_path / "m", CONFIG, random_params(CONFIG), dtype=dtype), "dtype=")


def test_buffers_are_dropped_only_where_layers_have_them(tmp_path):
    tensors = old_tensors() | {"foo.attention.bias": np.ones(1, np.float32)}
    refuses(lambda: hf.load_pretrained(write_checkpoint(tmp_path / "m", tensors)), "foo.attention.bias", "unexpected")


def test_an_absurd_number_of_layers_is_refused_at_once(tmp_path):
    model = write_checkpoint(tmp_path / "m", old_tensors(), OLD_CONFIG | {"num_hidden_layers": 9_999})
    refuses(lambda: hf.check_pretrained(model), model, "9,999 layers")


def test_an_unreadable_weight_file_says_why(tmp_path, monkeypatch):
    model = write_checkpoint(tmp_path / "m", old_tensors())

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    load_config = hf.load_config(model)
    monkeypatch.setattr(hf, "load_config", lambda _: load_config)
    monkeypatch.setattr("builtins.open", denied)
    refuses(lambda: hf.check_pretrained(model), model / "model.safetensors", "Permission denied")


def test_the_exported_tokenizer_refers_to_no_code(tmp_path):
    source = write_tokenizer(tmp_path / "tokenizer")
    settings = {
        "eos_token": "<|endoftext|>",
        "tokenizer_class": "MyOwn",
        "auto_map": {"AutoTokenizer": ["my.MyOwn", None]},
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    hf.save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG), tokenizer_source=source)
    written = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    assert load_tokenizer(tmp_path / "model").eos_token_id == 0


def test_an_empty_vocabulary_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({}, unk_token="")).save(str(tmp_path / "tokenizer.json"))
    refuses(lambda: check_tokenizer(CONFIG, load_tokenizer(tmp_path)), "empty vocabulary")


def test_the_tokenizer_and_where_documents_end_are_inputs_of_a_stage(tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    seen = [dict(vocabulary_input("source", lambda: tmp_path))]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"changed": 1}')
        seen.append(dict(vocabulary_input("source", lambda: tmp_path)))
    assert all(list(found) == ["source's tokenizer"] for found in seen)
    assert len({found["source's tokenizer"] for found in seen}) == 4
