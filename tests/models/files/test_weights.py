"""Any box of a stored tensor is what slicing the whole would give, reads only its own bytes, and runs no code."""

import importlib.util
import itertools
import json
import math
import os
import pathlib
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from selftrain_jax.models import hf
from selftrain_jax.models.files import weights
from tests.models.checkpoints import CONFIG, OLD_CONFIG, assert_same_bits, old_tensors, refuses, write_checkpoint

SHAPE = (6, 5, 4, 3)


def bytes_read():
    fields = dict(line.split(": ") for line in pathlib.Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.fixture(params=[np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def stored(request, tmp_path):
    """(array, the same array in a file behind another)"""
    value = np.random.default_rng(0).normal(size=SHAPE).astype(request.param)
    safetensors.numpy.save_file({"a": np.ones(7, np.float16), "x": value}, tmp_path / "x.safetensors")
    return value, {t.key: t for t in weights.stored_tensors(tmp_path / "x.safetensors")}["x"]


@pytest.mark.parametrize("shape", [SHAPE, (30, 12), (360,)])
def test_every_box_is_that_slice(stored, shape):
    value, tensor = stored
    rng = np.random.default_rng(1)
    for whole_axes in itertools.product([True, False], repeat=len(shape)):
        box = tuple(
            (0, size) if whole else tuple(sorted(rng.choice(size + 1, 2, replace=False).tolist()))
            for size, whole in zip(shape, whole_axes)
        )
        found = tensor.read(shape, box)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value.reshape(shape)[tuple(slice(*bounds) for bounds in box)])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes as Linux does")
@pytest.mark.parametrize(
    "box",
    [((2, 3), (0, 5), (0, 4), (0, 3)), ((0, 6), (0, 5), (1, 3), (0, 3)), ((0, 6), (2, 3), (0, 4), (1, 2))],
    ids=["row", "runs", "single values"],
)
def test_only_the_bytes_of_the_box_are_read(stored, box):
    value, tensor = stored
    overhead = -bytes_read() + bytes_read()
    before = bytes_read()
    tensor.read(SHAPE, box)
    size = math.prod(high - low for low, high in box) * value.itemsize
    assert bytes_read() - before - overhead == size < value.nbytes


def test_a_file_cut_while_it_is_read_is_refused(stored):
    _, tensor = stored
    os.truncate(tensor.path, tensor.path.stat().st_size - 100)
    refuses(lambda: tensor.read(SHAPE, tuple((0, size) for size in SHAPE)), tensor.path, "ended early")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch, which reads .bin files, is not installed")


def write_torch_checkpoint(torch, directory, tensors, name="pytorch_model.bin", **options):
    def convert(x):
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(OLD_CONFIG))
    torch.save({key: convert(x) for key, x in tensors.items()}, directory / name, **options)
    return directory


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32], ids=["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_pytorch_files_hold_the_same_weights(torch, tmp_path, dtype, zipped):
    tensors = old_tensors(dtype=dtype)
    write_torch_checkpoint(torch, tmp_path / "bin", tensors, _use_new_zipfile_serialization=zipped)
    write_checkpoint(tmp_path / "safe", tensors)
    (config, found), (_, expected) = hf.load_pretrained(tmp_path / "bin"), hf.load_pretrained(tmp_path / "safe")
    assert config == CONFIG
    assert_same_bits(found, expected)


def test_pytorch_shards_load_and_safetensors_come_first(torch, tmp_path):
    tensors = old_tensors()
    names = sorted(tensors)
    model = tmp_path / "bin"
    for number, part in enumerate((names[:9], names[9:]), 1):
        write_torch_checkpoint(torch, model, {n: tensors[n] for n in part}, f"pytorch_model-{number:05d}-of-00002.bin")
    weight_map = {n: f"pytorch_model-{1 + (n in names[9:]):05d}-of-00002.bin" for n in names}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    expected = hf.load_pretrained(write_checkpoint(tmp_path / "safe", tensors))[1]
    assert_same_bits(hf.load_pretrained(model)[1], expected)

    other = {name: x + 1 if x.dtype == np.float16 else x for name, x in tensors.items()}
    write_checkpoint(model, other)
    np.testing.assert_array_equal(hf.load_pretrained(model)[1]["head"]["kernel"], other["embed_out.weight"].T)


class _Trap:
    """A pickle that would write a file when it is opened."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.write_text, (self.target, "run")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(torch, tmp_path):
    model, target = write_torch_checkpoint(torch, tmp_path / "bin", old_tensors()), tmp_path / "sprung"
    torch.save({"gpt_neox.embed_in.weight": _Trap(target)}, model / "pytorch_model.bin")
    refuses(lambda: hf.load_pretrained(model), model / "pytorch_model.bin", "code", "safetensors")
    assert not target.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert target.exists()  # the trap works


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-200], lambda data: b"", lambda data: b"version https://git-lfs"]
)
def test_damaged_pytorch_files_are_refused(torch, tmp_path, damage):
    path = write_torch_checkpoint(torch, tmp_path / "bin", old_tensors()) / "pytorch_model.bin"
    path.write_bytes(damage(path.read_bytes()))
    refuses(lambda: hf.load_pretrained(tmp_path / "bin"), path)


def test_pytorch_files_of_other_things_are_refused(torch, tmp_path):
    model = write_torch_checkpoint(torch, tmp_path / "bin", old_tensors())
    torch.save([1, 2], model / "pytorch_model.bin")
    refuses(lambda: hf.load_pretrained(model), "list")
    torch.save({"epoch": 3}, model / "pytorch_model.bin")
    refuses(lambda: hf.load_pretrained(model), "'epoch'", "int")


@pytest.mark.filterwarnings("error")
def test_pytorch_tensors_that_are_not_dense_are_refused_by_name(torch, tmp_path):
    tensors = old_tensors()
    model = write_torch_checkpoint(torch, tmp_path / "bin", tensors)
    key = "gpt_neox.embed_in.weight"
    value = torch.from_numpy(tensors[key])
    with warnings.catch_warnings(action="ignore"):  # "a prototype"
        nested = torch.nested.nested_tensor([value.float()])
    for odd, word in (
        (value.to_sparse(), "sparse_coo"),
        (value.to("meta"), "meta"),
        (value[:1].clone().expand(48, 16), "larger"),
        (torch._neg_view(value.float()), "negated"),
        (nested, "nested"),
    ):
        state = {name: torch.from_numpy(x) for name, x in tensors.items()} | {key: odd}
        torch.save(state, model / "pytorch_model.bin")
        refuses(lambda: hf.load_pretrained(model), model / "pytorch_model.bin", key, word)


def test_a_packed_pytorch_file_is_refused_before_it_is_unpacked(torch, tmp_path, monkeypatch):
    path = write_torch_checkpoint(torch, tmp_path / "bin", old_tensors()) / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, _ in entries:
            archive.writestr(entry.filename, bytes(1 << 20))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    refuses(lambda: hf.load_pretrained(tmp_path / "bin"), path, "packed")


def test_pytorch_files_without_pytorch_say_what_to_install(tmp_path, monkeypatch):
    model = write_checkpoint(tmp_path / "bin", old_tensors())
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
    )
    refuses(lambda: hf.load_pretrained(model), model / "pytorch_model.bin", "pip install torch")
