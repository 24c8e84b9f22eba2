"""The tensors in a checkpoint's files. Any box of a tensor is read without the rest of it, and no file is ever
executed.

safetensors files are read by byte range. The library's own slices go through a memory map, whose pages would count as
this process's memory and which reads ahead of what is asked; so the library checks the file, and `os.preadv` reads it.
"""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import pathlib
import pickle
import struct
import warnings
import zipfile
from typing import Callable, Iterator

import ml_dtypes
import numpy as np

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, InputWarning, one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"

_SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

Box = tuple[tuple[int, int], ...]
"""[start, stop) along each axis."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint file.

    Attributes:
      path: the file.
      key: its name there.
      shape: as stored.
      dtype: its name, one of `DTYPES`, or as the file spells what is none of them.
      read: `read(shape, box)` is that box of the tensor, reshaped to `shape` first.
    """

    path: pathlib.Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[tuple[int, ...], Box], np.ndarray]


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold a checkpoint's weights: safetensors if there are any, PyTorch's otherwise.

    Raises:
      InputError: there are none, or the index is broken or names a file that is missing.

    Warns:
      InputWarning: an adapter lies beside them, which peft would apply to them.
    """
    if (directory / "adapter_config.json").is_file():
        text = f"{directory}: the adapter beside the weights (adapter_config.json) is not applied: merge it first"
        warnings.warn(text, InputWarning, stacklevel=1)  # of one place: said once
    for whole in (WEIGHTS, TORCH_WEIGHTS):
        if found := parts_of(directory, whole):
            return found
    raise InputError(
        f"{directory} holds no weights ({WEIGHTS}, {TORCH_WEIGHTS}, or either's .index.json): the download is "
        "unfinished, or this is not a model directory"
    )


def parts_of(directory: pathlib.Path, whole: str) -> list[pathlib.Path]:
    """The file `whole`, or the shards of its index; none where there is neither. `InputError` as `weight_files`."""
    index = directory / f"{whole}.index.json"
    if (directory / whole).is_file():
        return [directory / whole]
    if not index.is_file():
        return []
    value = files.read_json(index, "weight index")
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no 'weight_map'; download or export the checkpoint again")
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        # A path in the index must not lead out of the checkpoint.
        if pathlib.PurePath(name).name != name or not os.path.isfile(directory / name):
            raise InputError(f"{index} names the shard {name!r}, which is missing from {directory}; download it again")
    return [directory / name for name in shards]


def stored_tensors(path: pathlib.Path) -> Iterator[StoredTensor]:
    """The tensors of one file. Of a safetensors file, no more than the header is read.

    Raises:
      InputError: the file is broken, or is a `.bin` file that cannot be read: PyTorch is missing, or the pickle in it
        asks for more than tensors.
    """
    return _torch_tensors(path) if path.suffix == ".bin" else _safetensors(path)


def _safetensors(path: pathlib.Path) -> Iterator[StoredTensor]:
    import safetensors

    try:
        with open(path, "rb") as f:
            with safetensors.safe_open(path, framework="numpy"):  # checks the header, and the length against it
                pass
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror or one_line(e)})") from None
    except safetensors.SafetensorError as e:
        raise InputError(f"{path} is not a readable safetensors file ({one_line(e)}); download it again") from None
    header.pop("__metadata__", None)
    for key, entry in header.items():
        start = 8 + length + entry["data_offsets"][0]
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])

        def read(shape, box, start=start, dtype=dtype):
            return _read_box(path, start, np.dtype(dtype), shape, box)

        yield StoredTensor(path, key, tuple(entry["shape"]), dtype, read)


def _read_box(path: pathlib.Path, start: int, dtype: np.dtype, shape: tuple[int, ...], box: Box) -> np.ndarray:
    """A box of the row-major array of `shape` that lies at byte `start`; only the bytes of the box are read."""
    out = np.empty([high - low for low, high in box], dtype)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # Trailing axes that are whole form one run of bytes with the axis before them.
    run = len(shape) - 1
    while run > 0 and box[run] == (0, shape[run]):
        run -= 1
    rows = out.reshape(math.prod(out.shape[:run]), -1).view(np.uint8)
    origin = box[run][0] * strides[run]
    outer = itertools.product(*(range(low * n, high * n, n) for (low, high), n in zip(box[:run], strides)))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for row, offsets in zip(rows, outer):
            view, position = memoryview(row), start + (origin + sum(offsets)) * dtype.itemsize
            while view:
                count = os.preadv(descriptor, [view], position)
                if not count:
                    raise InputError(f"{path} ended early: something changed it while it was read; download it again")
                view, position = view[count:], position + count
    finally:
        os.close(descriptor)
    return out


def _torch_tensors(path: pathlib.Path) -> Iterator[StoredTensor]:
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{path} is a PyTorch checkpoint, which only PyTorch reads: pip install torch, or use a revision or copy "
            f"of the model with {WEIGHTS}"
        )
    import torch

    try:
        if zipfile.is_zipfile(path):  # PyTorch writes them unpacked; what is packed, it would unpack into memory
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it is packed, and could fill the memory")
        with warnings.catch_warnings(action="ignore"):  # PyTorch warns of the pickles that it then refuses
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as e:
                if "mmap" not in str(e):
                    raise
                state = torch.load(path, map_location="cpu", weights_only=True)  # the format of PyTorch before 1.6
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is refused: it is damaged, or holds more than tensors, and reading that would run code from the "
            f"file; get the model as {WEIGHTS}"
        ) from None
    except Exception as e:  # PyTorch raises RuntimeError, EOFError, OSError and its own for damaged files
        raise InputError(
            f"{path} is not a readable PyTorch checkpoint ({one_line(e)[:200]}); download it again"
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not the tensors of a model by name")
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{path}: {key!r} is not a tensor but a {type(tensor).__name__}; export the model again")
        fault = ""
        if tensor.is_meta:
            fault = "has no values (device meta)"
        elif tensor.layout != torch.strided or tensor.is_nested or tensor.is_neg():
            kind = "nested" if tensor.is_nested else "negated" if tensor.layout == torch.strided else tensor.layout
            fault = f"is stored as {kind}"
        elif tensor.nbytes > tensor.untyped_storage().nbytes():  # the same bytes many times over
            fault = f"of shape {tuple(tensor.shape)} is larger than what the file holds of it"
        if fault:
            raise InputError(f"{path}: tensor {key!r} {fault}; export the model again with dense tensors")

        def read(shape, box, tensor=tensor):
            part = tensor.detach().reshape(shape)[tuple(slice(*bounds) for bounds in box)]
            if part.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own, so the bits travel as integers
                return part.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return part.numpy()

        yield StoredTensor(path, str(key), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)
