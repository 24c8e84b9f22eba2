"""A checkpoint read straight into shards is the checkpoint read whole, on every mesh, and in Orbax form on any
other.
"""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from selftrain_jax.core.errors import InputWarning
from selftrain_jax.distributed.mesh import RULES, make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models import decoder, hf
from selftrain_jax.models.families import PRESETS
from selftrain_jax.models.files import converted
from selftrain_jax.models.files.fingerprints import model_fingerprint
from selftrain_jax.run.export import convert, export
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
from tests.shapes import GROUPED

ROOT = pathlib.Path(__file__).resolve().parents[2]
GEMMA = dataclasses.replace(
    PRESETS["gemma-3-270m"], vocab_size=48, hidden_size=16, num_layers=7, intermediate_size=40, head_size=6
)
MESHES = [(8, 1, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8), (1, 8, 1)]


def mesh_of(shape):
    return make_mesh(MeshConfig(*shape))


def on_host(params):
    return jax.tree.map(np.asarray, params)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks per tensor, with a last one that is smaller."""
    monkeypatch.setattr(hf, "_CHUNK_BYTES", 600)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("config", [CONFIG, TIED, GROUPED, GEMMA], ids=["untied", "tied", "groups", "gemma"])
def test_shards_hold_the_checkpoint(tmp_path, config, shape):
    expected = random_params(config)
    hf.save_pretrained(tmp_path / "model", config, expected, max_shard_bytes=8000)
    mesh = mesh_of(shape)
    found_config, params = hf.load_pretrained(tmp_path / "model", mesh=mesh)
    assert found_config == config
    assert_same_bits(on_host(params), expected)
    placement = decoder.param_shardings(config, mesh)
    jax.tree.map(lambda leaf, where: pytest.fail() if leaf.sharding != where else None, params, placement)


def test_rules_of_the_caller_place_the_parameters(tmp_path):
    expected = random_params(CONFIG)
    hf.save_pretrained(tmp_path / "model", CONFIG, expected)
    rules = dict.fromkeys(RULES) | {"layers": "data", "head_dim": "tensor", "qkv": None, "embed": ("data", "fsdp")}
    rules["embed"] = None
    _, params = hf.load_pretrained(tmp_path / "model", mesh=mesh_of((2, 1, 4)), rules=rules)
    kernel = params["layers"]["qkv"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("data", None, None, None, "tensor")
    assert_same_bits(on_host(params), expected)


@pytest.mark.parametrize("mesh", [None, (1, 4, 2)], ids=["host", "mesh"])
def test_weights_are_cast_on_the_way(tmp_path, mesh):
    expected = random_params(CONFIG)
    hf.save_pretrained(tmp_path / "model", CONFIG, expected)
    _, params = hf.load_pretrained(tmp_path / "model", dtype="bfloat16", mesh=mesh and mesh_of(mesh))
    assert_same_bits(on_host(params), jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), expected))


def test_loaded_parameters_do_not_share_memory(tmp_path):
    """Devices may use the buffers that were read into, so a donated step must not reach another load."""
    hf.save_pretrained(tmp_path / "model", CONFIG, random_params(CONFIG))
    mesh = mesh_of((1, 4, 2))
    first, second = (hf.load_pretrained(tmp_path / "model", mesh=mesh)[1] for _ in range(2))
    jax.block_until_ready(jax.jit(lambda p: jax.tree.map(lambda x: x * 0, p), donate_argnums=0)(first))
    assert_same_bits(on_host(second), random_params(CONFIG))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_warned_of_by_name(tmp_path, value, dtype):
    tensors = old_tensors(dtype=dtype)
    tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"][39, 15] = value
    model = write_checkpoint(tmp_path / "model", tensors)
    with pytest.warns(InputWarning, match="gpt_neox.layers.1.mlp.dense_h_to_4h.weight.*NaN or infinite") as caught:
        hf.load_pretrained(model, mesh=mesh_of((1, 4, 2)))
    assert len(caught) == 1


@pytest.mark.large
def test_each_process_reads_its_own_part():
    """Two processes that share an fsdp x tensor mesh: each asks the system for about half of the file."""
    if not os.path.exists("/proc/self/io"):
        pytest.skip("counts bytes as Linux does")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "loading.py", "--preset=pythia-31m", "--layers=2", "--processes=2"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0.4 < json.loads(done.stdout.splitlines()[-1])["read_share"] < 0.6


@pytest.fixture
def model(tmp_path):
    """A Hugging Face directory with a tokenizer, in half precision as published."""
    directory = write_checkpoint(tmp_path / "model", old_tensors())
    write_tokenizer(directory)
    return directory


@pytest.mark.parametrize(
    "config", [CONFIG, pytest.param(GROUPED, marks=pytest.mark.large), GEMMA], ids=["neox", "groups", "gemma"]
)
def test_orbax_on_one_mesh_restores_on_another_and_exports_the_same_bits(config, tmp_path):
    hf.save_pretrained(tmp_path / "model", config, random_params(config, np.float16))
    config, params = hf.load_pretrained(tmp_path / "model", mesh=mesh_of((1, 4, 2)))
    hf.save_pretrained(tmp_path / "direct", config, params)
    converted.save(tmp_path / "orbax", config, params, {"fingerprint": "any"})
    for shape in MESHES:
        found_config, found = hf.load_pretrained(tmp_path / "orbax", mesh=mesh_of(shape))
        assert found_config == config
        where = decoder.param_shardings(config, mesh_of(shape))
        jax.tree.map(lambda leaf, s: pytest.fail() if leaf.sharding != s else None, found, where)
        hf.save_pretrained(tmp_path / str(shape), config, found)
        exported = (tmp_path / str(shape) / "model.safetensors").read_bytes()
        assert exported == (tmp_path / "direct" / "model.safetensors").read_bytes()


def test_a_converted_directory_serves_wherever_a_model_does(model, tmp_path):
    convert(str(model), tmp_path / "orbax")
    hf.check_pretrained(tmp_path / "orbax")
    assert_same_bits(hf.load_pretrained(tmp_path / "orbax")[1], hf.load_pretrained(model)[1])
    half = hf.load_pretrained(tmp_path / "orbax", dtype="bfloat16", mesh=mesh_of((2, 2, 2)))[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    assert (tmp_path / "orbax" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_the_fingerprint_of_a_converted_directory_follows_its_source(model, tmp_path):
    convert(str(model), tmp_path / "a")
    convert(str(model), tmp_path / "b")
    convert(str(model), tmp_path / "half", dtype="bfloat16")
    (tmp_path / "other").mkdir()
    write_checkpoint(
        tmp_path / "other", {name: x + 1 if x.dtype == np.float16 else x for name, x in old_tensors().items()}
    )
    convert(str(tmp_path / "other"), tmp_path / "c")
    a, b, *others = (model_fingerprint(tmp_path / name) for name in ("a", "b", "half", "c"))
    assert a == b and len({a, *others}) == 3


def test_the_fingerprint_of_a_converted_directory_follows_edits_of_its_config(model, tmp_path):
    """But for one of an earlier version, which did not note it."""
    convert(str(model), tmp_path / "a")
    before = model_fingerprint(tmp_path / "a")
    path, record = tmp_path / "a" / "config.json", tmp_path / "a" / "conversion.json"
    assert before == json.loads(record.read_text())["fingerprint"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": 3}))
    assert model_fingerprint(tmp_path / "a") != before
    earlier = {name: value for name, value in json.loads(record.read_text()).items() if name != "config"}
    record.write_text(json.dumps(earlier))
    assert model_fingerprint(tmp_path / "a") == before


def test_arrays_that_are_not_those_that_were_converted_are_refused(model, tmp_path):
    """Orbax gives back what is on disk, in the dtype that it is asked for."""
    values = {name: x + 1 if x.dtype == np.float16 else x for name, x in old_tensors().items()}
    values["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][:2] = 6e-8, 65_504  # the smallest and the largest
    write_checkpoint(model, values)
    convert(str(model), tmp_path / "orbax")
    for dtype, mesh in (("float32", mesh_of((1, 4, 2))), ("bfloat16", mesh_of((8, 1, 1))), ("float16", None)):
        hf.load_pretrained(tmp_path / "orbax", dtype=dtype, mesh=mesh)

    other = write_checkpoint(tmp_path / "other", old_tensors())
    convert(str(other), tmp_path / "swapped")
    shutil.copy(tmp_path / "orbax" / "conversion.json", tmp_path / "swapped")
    flipped = shutil.copytree(tmp_path / "orbax", tmp_path / "flipped")
    largest = max((f for f in flipped.rglob("*") if f.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    refuses(lambda: hf.load_pretrained(tmp_path / "swapped"), tmp_path / "swapped", "is not what was converted")
    for directory in (tmp_path / "swapped", flipped):  # a flipped bit may be found by the storage layer, too
        refuses(lambda: hf.load_pretrained(directory), directory)  # noqa: B023
        refuses(lambda: hf.load_pretrained(directory, dtype="float16", mesh=mesh_of((2, 2, 2))), directory)  # noqa: B023


def test_faults_of_converted_directories(model, tmp_path):
    convert(str(model), tmp_path / "orbax")

    def damaged(name, change):
        directory = shutil.copytree(tmp_path / "orbax", tmp_path / name)
        change(directory)
        refuses(lambda: hf.load_pretrained(directory), directory)
        return directory

    damaged("no-params", lambda d: shutil.rmtree(d / "params"))
    damaged("wider", lambda d: (d / "config.json").write_text(json.dumps(OLD_CONFIG | {"intermediate_size": 41})))
    damaged("bad-metadata", lambda d: (d / "params" / "_METADATA").write_text("{}"))
    directory = damaged("no-metadata", lambda d: (d / "params" / "_METADATA").unlink())
    refuses(lambda: hf.load_pretrained(directory), "_METADATA is missing or damaged")
    directory = shutil.copytree(tmp_path / "orbax", tmp_path / "record")
    broken = ('{"fingerprint": "f", "%s": 5}' % name for name in ("source", "checksums"))
    for text in ("{}", "[]", "5", "null", *broken, '{"fingerprint": "f", "dtype": "O"}'):
        (directory / "conversion.json").write_text(text)
        refuses(lambda: model_fingerprint(directory), directory / "conversion.json", "convert")
        refuses(lambda: export(directory, tmp_path / "out"), directory / "conversion.json", "convert")
    refuses(lambda: export(tmp_path / "orbax", tmp_path / "out", step=3), "step=3", "drop")
    refuses(lambda: export(tmp_path / "orbax", tmp_path / "out", model="base"), "'base'", "drop")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mesh", [None, (1, 4, 2)], ids=["host", "mesh"])
def test_numbers_too_large_for_the_dtype_of_a_restore_are_refused(tmp_path, mesh):
    params = random_params(CONFIG)
    params["layers"]["up"]["bias"][1, 3] = 1e6
    converted.save(tmp_path / "orbax", CONFIG, params, {"fingerprint": "any"})
    place = mesh and mesh_of(mesh)
    assert hf.load_pretrained(tmp_path / "orbax", dtype="bfloat16", mesh=place)
    refuses(lambda: hf.load_pretrained(tmp_path / "orbax", dtype="float16", mesh=place), "['up']['bias']", "float16")


def test_a_disk_that_fills_up_is_one_line(model, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def full(*_):
        logging.getLogger("absl").error("Traceback")
        raise ValueError("RESOURCE_EXHAUSTED: Error writing\n... Failed to write to file: ... [os_error_code='28']")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    logged = []
    monkeypatch.setattr(logging.getLogger("absl"), "handle", logged.append)
    refuses(
        lambda: convert(str(model), tmp_path / "out"), "converted model", tmp_path / "out", "(No space left on device)"
    )
    assert not logged and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_convert_refuses_before_it_writes(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    refuses(lambda: convert(str(model), tmp_path / "out", dtype="int8"), "dtype='int8'", "float32")
    refuses(lambda: convert(str(model), model), "not empty")
    refuses(lambda: convert(str(tmp_path / "none"), tmp_path / "out"), "not found")
    refuses(lambda: convert(str(model), tmp_path / "out", revision="step1"), "step1", "local directory")
    (model / "special_tokens_map.json").symlink_to("/etc/hostname")
    refuses(lambda: convert(str(model), tmp_path / "out"), "special_tokens_map.json is a link to /etc/hostname")
    (model / "special_tokens_map.json").unlink()
    write_tokenizer(model, words=[f"w{i}" for i in range(60)])
    refuses(lambda: convert(str(model), tmp_path / "out"), "61 ids", "vocab_size=48")
    assert sorted(tmp_path.iterdir()) == before
