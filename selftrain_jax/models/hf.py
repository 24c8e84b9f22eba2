"""Hugging Face checkpoints in and out.

A directory is laid out as transformers does it: `config.json`, `model.safetensors` or shards with an index, and
`tokenizer.json`. Directories that `selftrain convert` made, which hold Orbax arrays instead, are read as well.
"""

import concurrent.futures
import math
import os
import pathlib
import shutil
import warnings
from typing import Any, Iterator

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from selftrain_jax.core import files, progress
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.distributed.mesh import RULES
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params, param_shardings
from selftrain_jax.models.families import FAMILIES
from selftrain_jax.models.families.tensor import Tensor
from selftrain_jax.models.files import converted
from selftrain_jax.models.files.dtypes import DTYPES, cast, narrower, to_dtype
from selftrain_jax.models.files.fingerprints import is_converted
from selftrain_jax.models.files.hf_config import load_config, write_config
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import copied_files, copy_tokenizer
from selftrain_jax.models.files.weights import INDEX, WEIGHTS, Box, StoredTensor, stored_tensors, weight_files

PathLike = str | os.PathLike

_CHUNK_BYTES = 8 << 20
_ALIGNMENT = 64
_PROGRESS_BYTES = 2 << 30


def load_pretrained(
    name_or_dir: PathLike, revision: str | None = None, *, dtype: Any = None, mesh: Any = None, rules: dict = RULES
) -> tuple[DecoderConfig, Params]:
    """Configuration and parameters of a checkpoint, read straight into the shards of a mesh.

    Args:
      name_or_dir: a local directory, or a hub name such as `EleutherAI/pythia-410m`.
      revision: branch, tag or commit on the hub, such as `step143000`.
      dtype: of every returned leaf, cast while reading, one of `DTYPES`; None is fp32, which holds fp16, bf16 and fp32
        checkpoints exactly.
      mesh: `jax.sharding.Mesh` to spread the parameters over. Each process reads only what its own devices hold, and
        besides that keeps at most one stacked parameter's shards in host memory. None returns numpy arrays.
      rules: logical axis name -> mesh axis; the sharding table.

    Returns:
      The `DecoderConfig`, and `params` with layers stacked, as `models.decoder` lists them.

    Raises:
      InputError: the configuration or dtype is not supported, or a file or tensor (named) is missing, unexpected, or
        broken, or a tensor (named) holds a finite number that is too large for `dtype`.

    Warns:
      InputWarning: a tensor (named) holds NaN or infinite values.
    """
    dtype = to_dtype(dtype)
    directory = resolve_model(name_or_dir, revision)
    config = load_config(directory)
    shardings = None if mesh is None else param_shardings(config, mesh, rules)
    if is_converted(directory):
        return config, converted.load(directory, config, dtype, shardings)
    found = _find_tensors(weight_files(directory), config)
    _check_tied(config, found)
    parts: dict[tuple[str, ...], list[tuple[int | None, Tensor, StoredTensor]]] = {}
    for name, (tensor, layer) in _tensors(config).items():
        parts.setdefault(tensor.path, []).append((layer, tensor, found[name]))
    where = {} if shardings is None else flatten_dict(shardings)
    leaves: dict[tuple[str, ...], Any] = {}
    total = 4 * config.num_params
    with progress.bar(
        total=total, desc=f"load {directory.name}", unit="B", unit_scale=True, disable=total < _PROGRESS_BYTES
    ) as bar:
        for path, pieces in parts.items():
            leaves[path] = _load_leaf(config, pieces, dtype, where.get(path))
            bar.update(4 * leaves[path].size)
    return config, unflatten_dict(leaves)


def check_pretrained(directory: PathLike) -> DecoderConfig:
    """The configuration of a checkpoint whose every tensor is there in the right shape; only headers are read.

    Raises:
      InputError: what `load_pretrained` would raise.
    """
    directory = resolve_model(directory)
    config = load_config(directory)
    if is_converted(directory):
        converted.check(directory, config)
    else:
        _find_tensors(weight_files(directory), config)
    return config


def _find_tensors(paths: list[pathlib.Path], config: DecoderConfig) -> dict[str, StoredTensor]:
    """Full name -> tensor. Of safetensors only headers are read, so a bad checkpoint fails before any copying."""
    family = FAMILIES[config.family]
    tensors = [stored for path in paths for stored in stored_tensors(path) if not family.ignored.fullmatch(stored.key)]
    if config.num_layers > len(tensors):  # before a name is made for every layer that a wrong number asks for
        raise InputError(
            f"{paths[0].parent}: config.json asks for {config.num_layers:,} layers, but there are {len(tensors)} "
            "tensors; the checkpoint is incomplete, or config.json is not its own"
        )
    names = family.tensors(config, head=True)
    found: dict[str, StoredTensor] = {}
    for stored in tensors:
        path, name = stored.path, family.aliases.get(stored.key, stored.key)
        if name not in names:  # a checkpoint of the model without its output layer, whose names have no prefix
            name = family.prefix + name
        if name not in names:
            raise InputError(f"{path}: unexpected tensor {stored.key!r}; is config.json that of this checkpoint?")
        if name in found:
            raise InputError(f"{path}: tensor {stored.key!r} occurs twice (also in {found[name].path.name})")
        shape = names[name][0].shape
        if stored.shape != shape:
            raise InputError(
                f"{path}: tensor {stored.key!r} has shape {stored.shape}, but config.json asks for {shape}"
            )
        if stored.dtype not in DTYPES:
            raise InputError(
                f"{path}: tensor {stored.key!r} is {stored.dtype}, not one of {', '.join(DTYPES)}; "
                "quantized checkpoints are not supported"
            )
        found[name] = stored
    if config.tie_embeddings and family.head in found:  # the one table may be stored under either name
        found.setdefault(family.embedding_name, found[family.head])
    missing = [name for name in _tensors(config) if name not in found]
    if missing:
        raise InputError(
            f"{paths[0].parent}: {len(missing)} tensor(s) missing, the first is {missing[0]!r}; "
            "the checkpoint is incomplete, or config.json is not its own"
        )
    return found


def _tensors(config: DecoderConfig) -> dict[str, tuple[Tensor, int | None]]:
    return FAMILIES[config.family].tensors(config, head=not config.tie_embeddings)


def _check_tied(config: DecoderConfig, found: dict[str, StoredTensor]) -> None:
    family = FAMILIES[config.family]
    head, embedding = found.get(family.head), found.get(family.embedding_name)
    if not config.tie_embeddings or head is None or head is embedding:
        return
    boxes = _chunks(tuple((0, size) for size in head.shape), 4)
    pairs = ((head.read(head.shape, box), embedding.read(head.shape, box)) for box in boxes)
    if not all(np.array_equal(*pair, equal_nan=True) for pair in pairs):
        raise InputError(
            f"{head.path}: tensor {head.key!r} differs from the embedding although config.json says "
            "tie_word_embeddings=true; correct one of them"
        )


def _load_leaf(config: DecoderConfig, pieces: list, dtype: np.dtype, sharding: Any) -> Any:
    """One leaf of `params`: its shards on this process's devices, or with `sharding` None the whole of it as numpy."""
    tensor = pieces[0][1]
    shape = (() if pieces[0][0] is None else (config.num_layers,)) + tensor.leaf_shape
    whole = {None: (slice(None),) * len(shape)}
    devices: dict[Box, list] = {}
    for device, index in (sharding.addressable_devices_indices_map(shape) if sharding else whole).items():
        box = tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        devices.setdefault(box, []).append(device)
    buffers = {box: _empty([high - low for low, high in box], dtype) for box in devices}
    union = tuple((min(low), max(high)) for low, high in (zip(*bounds) for bounds in zip(*buffers)))
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        broken = {key for key in pool.map(lambda piece: _copy_piece(*piece, buffers), _split(pieces, union)) if key}
    for key in sorted(broken):
        warnings.warn(f"tensor {key} holds NaN or infinite values; the model is damaged", InputWarning, stacklevel=4)
    if sharding is None:
        return buffers.popitem()[1]
    places = ((box, device) for box, sharing in devices.items() for device in sharing)
    arrays = [jax.device_put(buffers[box], device, may_alias=True) for box, device in places]
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(shape, sharding, arrays))


def _empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An array at an address that a CPU device can use as it is, without a copy of its own."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _split(pieces, union: Box) -> Iterator[tuple[int | None, Tensor, StoredTensor, Box]]:
    """Cuts what `union` needs of every layer's tensor into chunks; their boxes are in the tensor's `split` axes."""
    for layer, tensor, stored in pieces:
        inner = union if layer is None else union[1:]
        if layer is None or union[0][0] <= layer < union[0][1]:
            box = tuple(inner[tensor.order.index(axis)] for axis in range(len(tensor.split)))
            for chunk in _chunks(box, 4):
                yield layer, tensor, stored, chunk


def _chunks(box: Box, itemsize: int) -> Iterator[Box]:
    (low, high), rest = box[0], box[1:]
    rows = max(1, _CHUNK_BYTES // (itemsize * math.prod(stop - start for start, stop in rest)))
    for start in range(low, high, rows):
        yield ((start, min(start + rows, high)), *rest)


def _copy_piece(layer, tensor: Tensor, stored: StoredTensor, box: Box, buffers: dict[Box, np.ndarray]) -> str | None:
    """Reads a chunk and copies it where it belongs; the tensor's name when it is not finite."""
    data, where = stored.read(tensor.split, box), f"{stored.key!r} in {stored.path}"
    found = None if np.isfinite(data).all() else where
    dtype = next(iter(buffers.values())).dtype
    if narrower(dtype, data.dtype):
        data = cast(data, dtype, where)
    data, box = data.transpose(tensor.order), tuple(box[axis] for axis in tensor.order)
    if layer is not None:
        data, box = data[None], ((layer, layer + 1), *box)
    for place, buffer in buffers.items():
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(place, box)]
        if all(low < high for low, high in common):
            target = tuple(slice(low - a, high - a) for (low, high), (a, _) in zip(common, place))
            source = tuple(slice(low - c, high - c) for (low, high), (c, _) in zip(common, box))
            buffer[target] = data[source]
    return found


def save_pretrained(
    directory: PathLike,
    config: DecoderConfig,
    params: Params,
    tokenizer_source: PathLike | None = None,
    max_shard_bytes: int = 5 * 10**9,
    *,
    dtype: Any = None,
    model_card: str | None = None,
) -> None:
    """Writes a checkpoint that transformers loads and `load_pretrained` reads back bit for bit.

    The directory appears complete or not at all. In a job of several processes, one of them calls this. Besides
    `params`, one shard is in host memory at a time.

    Args:
      directory: the destination; must not exist, or be empty.
      params: stacked parameters, numpy or fully addressable from this process.
      tokenizer_source: directory whose tokenizer files are copied.
      max_shard_bytes: larger checkpoints are split into shards of at most this size, and an index.
      dtype: of the stored weights; None keeps that of `params`.
      model_card: text of `README.md`.

    Raises:
      InputError: the destination is taken or its disk too small, the tokenizer is missing, `params` do not fit
        `config`, or one of them (named) holds a finite number that is too large for `dtype`.
    """
    dtype = None if dtype is None else to_dtype(dtype)
    if tokenizer_source is not None:
        copied_files(tokenizer_source)
    leaves = _checked_leaves(config, params)
    size = sum(math.prod(leaf.shape) * np.dtype(dtype or leaf.dtype).itemsize for leaf in leaves.values())
    with files.new_directory(directory, "export directory", size) as temporary:
        dtypes = {np.dtype(dtype or leaf.dtype).name for leaf in leaves.values()}
        write_config(temporary, config, dtypes.pop() if len(dtypes) == 1 else "float32")
        _write_weights(temporary, config, leaves, max_shard_bytes, dtype)
        if tokenizer_source is not None:
            copy_tokenizer(tokenizer_source, temporary)
        if model_card is not None:
            files.write_atomic(temporary / "README.md", model_card)


def _checked_leaves(config: DecoderConfig, params: Params) -> dict[tuple[str, ...], Any]:
    leaves, given = {}, flatten_dict(params)
    for name, (tensor, layer) in _tensors(config).items():
        shape = (() if layer is None else (config.num_layers,)) + tensor.leaf_shape
        if tensor.path not in given:
            raise InputError(f"params lack {'/'.join(tensor.path)}, which holds {name!r}")
        leaves[tensor.path] = leaf = given[tensor.path]
        if leaf.shape != shape:
            raise InputError(f"params {'/'.join(tensor.path)} has shape {leaf.shape}, but its config asks for {shape}")
    if more := given.keys() - leaves.keys():
        raise InputError(f"params hold {'/'.join(min(more))}, which a model of this config does not have")
    return leaves


def _write_weights(directory: pathlib.Path, config: DecoderConfig, leaves: dict, max_shard_bytes: int, dtype) -> None:
    import safetensors
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.numpy import save_file

    def size(where: tuple[Tensor, int | None]) -> int:
        return math.prod(where[0].shape) * np.dtype(dtype or leaves[where[0].path].dtype).itemsize

    names, pattern = _tensors(config), WEIGHTS.replace(".", "{suffix}.")
    split = split_state_dict_into_shards_factory(
        names, get_storage_size=size, filename_pattern=pattern, max_shard_size=max_shard_bytes
    )
    for file, shard in split.filename_to_tensors.items():
        tensors = {}
        for name in shard:
            tensor, layer = names[name]
            leaf = leaves[tensor.path]
            value = np.asarray(leaf if layer is None else leaf[layer])
            tensors[name] = tensor.to_hf(value if dtype in (None, value.dtype) else cast(value, dtype, repr(name)))
        try:
            save_file(tensors, directory / file, metadata={"format": "pt"})
        except safetensors.SafetensorError as e:  # its spelling of a full disk
            raise OSError(str(e)) from None
        # safetensors creates files readable by their owner only, whatever the umask.
        shutil.copymode(directory / "config.json", directory / file)
    if split.is_sharded:
        files.write_json(directory / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
