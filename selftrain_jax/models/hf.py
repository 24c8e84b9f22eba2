"""Hugging Face checkpoints in and out, and their tokenizers, without PyTorch.

Checkpoints are safetensors files read as numpy arrays; configurations and tokenizers go through transformers. A
directory is laid out as transformers does it: `config.json`, `model.safetensors` or shards with an index, and
`tokenizer.json`.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from typing import Any, Iterator

import numpy as np

from selftrain_jax import files
from selftrain_jax.errors import InputError, one_line
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.hub import resolve_model
from selftrain_jax.models.tokenizer import import_transformers, tokenizer_files

Params = dict[str, Any]
PathLike = str | os.PathLike

_PREFIX = "gpt_neox."
_HEAD = "embed_out.weight"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Buffers that older transformers versions stored; their values follow from the configuration.
_IGNORED = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
_DTYPES = ("BF16", "F16", "F32", "F64")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A checkpoint tensor: reshaped to `split` and transposed by `order`, it is (one layer of) the leaf at `path`."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        return tuple(self.split[axis] for axis in self.order)

    def from_hf(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.split).transpose(self.order)

    def to_hf(self, x: np.ndarray) -> np.ndarray:
        # The safetensors writer reads raw memory and ignores strides.
        return np.ascontiguousarray(x.transpose(np.argsort(self.order))).reshape(self.shape)


def _layout(config: ModelConfig, head: bool) -> dict[str, tuple[_Tensor, int | None]]:
    """Checkpoint name without prefix -> (tensor, layer or None), in file order; `head` includes the output layer."""
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim

    def vector(*path: str, size: int = d) -> _Tensor:
        return _Tensor(path, (size,), (size,), (0,))

    def linear(*path: str, rows: int, columns: int) -> _Tensor:
        return _Tensor(path, (rows, columns), (rows, columns), (1, 0))

    # Rows of the fused projection are ordered head, then query/key/value, then head dimension: not three global thirds.
    layer = {
        "input_layernorm.weight": vector("layers", "attention_norm", "scale"),
        "input_layernorm.bias": vector("layers", "attention_norm", "bias"),
        "post_attention_layernorm.weight": vector("layers", "mlp_norm", "scale"),
        "post_attention_layernorm.bias": vector("layers", "mlp_norm", "bias"),
        "attention.query_key_value.weight": _Tensor(
            ("layers", "qkv", "kernel"), (3 * d, d), (n, 3, h, d), (3, 1, 0, 2)
        ),
        "attention.query_key_value.bias": _Tensor(("layers", "qkv", "bias"), (3 * d,), (n, 3, h), (1, 0, 2)),
        "attention.dense.weight": _Tensor(("layers", "out", "kernel"), (d, d), (d, n, h), (1, 2, 0)),
        "attention.dense.bias": vector("layers", "out", "bias"),
        "mlp.dense_h_to_4h.weight": linear("layers", "up", "kernel", rows=f, columns=d),
        "mlp.dense_h_to_4h.bias": vector("layers", "up", "bias", size=f),
        "mlp.dense_4h_to_h.weight": linear("layers", "down", "kernel", rows=d, columns=f),
        "mlp.dense_4h_to_h.bias": vector("layers", "down", "bias"),
    }
    v = config.vocab_size
    layout = {"embed_in.weight": (_Tensor(("embed", "embedding"), (v, d), (v, d), (0, 1)), None)}
    for i in range(config.num_layers):
        layout |= {f"layers.{i}.{name}": (tensor, i) for name, tensor in layer.items()}
    layout["final_layer_norm.weight"] = vector("final_norm", "scale"), None
    layout["final_layer_norm.bias"] = vector("final_norm", "bias"), None
    if head:
        layout[_HEAD] = linear("head", "kernel", rows=v, columns=d), None
    return layout


def load_config(directory: PathLike) -> ModelConfig:
    """The architecture in `config.json`, written by any transformers version.

    Raises:
      InputError: the file is missing or broken, or describes a model other than GPT-NeoX with exact GELU, attention
        biases and plain rotary embeddings (named by field). Dropout rates are ignored.
    """
    path = resolve_model(directory) / "config.json"
    raw = files.read_json(path, "model configuration")
    if not isinstance(raw, dict) or raw.get("model_type") != "gpt_neox":
        found = raw.get("model_type") if isinstance(raw, dict) else None
        raise InputError(f"{path}: model_type={found!r} is not supported; only 'gpt_neox' (Pythia, GPT-NeoX) is")
    try:
        hf = import_transformers().GPTNeoXConfig.from_dict(raw)
        rope = hf.rope_parameters
        fields = {
            "hidden_act": (hf.hidden_act, "gelu"),
            "attention_bias": (hf.attention_bias, True),
            "rope_type": (rope["rope_type"], "default"),
        }
        for field, (value, supported) in fields.items():
            if value != supported:
                raise InputError(f"{field}={value!r} is not supported; only {supported!r} is")
        return ModelConfig(
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            intermediate_size=hf.intermediate_size,
            max_position=hf.max_position_embeddings,
            rotary_pct=float(rope["partial_rotary_factor"]),
            rotary_base=float(rope["rope_theta"]),
            layer_norm_eps=hf.layer_norm_eps,
            parallel_residual=hf.use_parallel_residual,
            tie_embeddings=hf.tie_word_embeddings,
            bos_token_id=_token_id(hf, "bos_token_id"),
            eos_token_id=_token_id(hf, "eos_token_id"),
        )
    except Exception as e:  # transformers validates with exception classes that differ between its versions
        raise InputError(f"{path}: {one_line(e)}") from None


def _token_id(hf: Any, field: str) -> int:
    value = getattr(hf, field)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise InputError(f"{field}={value!r} is not supported; it must be one token id")
    return value


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint; `InputError` when there are none or one is missing."""
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    index = directory / _INDEX
    if not index.is_file():
        target = f"{directory}-safetensors"
        raise InputError(
            f"{directory} holds neither {_WEIGHTS} nor {_INDEX}; where PyTorch is installed, convert a .bin checkpoint "
            f"with: python -c \"from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained('{directory}').save_pretrained('{target}')\""
        )
    value = files.read_json(index, "weight index")
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no 'weight_map'; download or export the checkpoint again")
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        # A path in the index must not lead out of the checkpoint.
        if pathlib.PurePath(name).name != name or not (directory / name).is_file():
            raise InputError(f"{index} names the shard {name!r}, which is missing from {directory}; download it again")
    return [directory / name for name in shards]


@contextlib.contextmanager
def _open_weights(path: pathlib.Path) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401  (makes numpy, and so safetensors, understand bfloat16)
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as f:
            yield f
    except (safetensors.SafetensorError, OSError) as e:
        raise InputError(f"{path} is not a readable safetensors file ({one_line(e)}); download it again") from None


def _find_tensors(paths: list[pathlib.Path], config: ModelConfig) -> dict[str, tuple[pathlib.Path, str]]:
    """Name without prefix -> (file, name in it). Reads headers only, so a bad checkpoint fails before any copying."""
    layout = _layout(config, head=True)
    found = {}
    for path in paths:
        with _open_weights(path) as f:
            for key in f.keys():
                if key.endswith(_IGNORED):
                    continue
                name = _HEAD if key == "lm_head.weight" else key.removeprefix(_PREFIX)
                if name not in layout:
                    raise InputError(f"{path}: unexpected tensor {key!r}; is config.json that of this checkpoint?")
                if name in found:
                    raise InputError(f"{path}: tensor {key!r} occurs twice (also in {found[name][0].name})")
                view, shape = f.get_slice(key), layout[name][0].shape
                if tuple(view.get_shape()) != shape:
                    raise InputError(
                        f"{path}: tensor {key!r} has shape {tuple(view.get_shape())}, but config.json asks for {shape}"
                    )
                if view.get_dtype() not in _DTYPES:
                    raise InputError(
                        f"{path}: tensor {key!r} is {view.get_dtype()}, not one of {', '.join(_DTYPES)}; "
                        "quantized checkpoints are not supported"
                    )
                found[name] = path, key
    optional = {_HEAD} if config.tie_embeddings else set()
    missing = [name for name in layout if name not in found and name not in optional]
    if missing:
        raise InputError(
            f"{paths[0].parent}: {len(missing)} tensor(s) missing, the first is {missing[0]!r}; "
            "the checkpoint is incomplete, or config.json is not its own"
        )
    return found


def check_pretrained(directory: PathLike) -> ModelConfig:
    """The configuration of a checkpoint whose every tensor is there in the right shape; only headers are read.

    Raises:
      InputError: what `load_pretrained` would raise.
    """
    directory = resolve_model(directory)
    config = load_config(directory)
    _find_tensors(_weight_files(directory), config)
    return config


def load_pretrained(directory: PathLike, dtype: Any = np.float32) -> tuple[ModelConfig, Params]:
    """Configuration and parameters of a checkpoint.

    Args:
      directory: a local directory, or a hub name (`resolve_model` takes its revision).
      dtype: of every returned leaf; the default holds fp16, bf16 and fp32 checkpoints exactly.

    Returns:
      The `ModelConfig`, and `params` as numpy arrays on the host with layers stacked: query, key and value are
      `[L, D, 3, N, H]`, other kernels `[L, in, out]`. Besides the result, one tensor is in memory at a time.

    Raises:
      InputError: the configuration is not supported, or a file or tensor (named) is missing, unexpected, or broken.
    """
    directory = resolve_model(directory)
    config = load_config(directory)
    paths = _weight_files(directory)
    found = _find_tensors(paths, config)
    layout = _layout(config, head=True)
    params: Params = {}
    for name in found:
        tensor, layer = layout[name]
        node = params
        for part in tensor.path[:-1]:
            node = node.setdefault(part, {})
        if tensor.path[-1] not in node:
            stack = () if layer is None else (config.num_layers,)
            node[tensor.path[-1]] = np.empty(stack + tensor.leaf_shape, dtype)
    for path in paths:
        with _open_weights(path) as f:
            for name, (where, key) in found.items():
                if where == path:
                    tensor, layer = layout[name]
                    _leaf(params, tensor.path)[... if layer is None else layer] = tensor.from_hf(f.get_tensor(key))
    if config.tie_embeddings and _HEAD in found:
        if not np.array_equal(params.pop("head")["kernel"].T, params["embed"]["embedding"]):
            raise InputError(
                f"{found[_HEAD][0]}: tensor {found[_HEAD][1]!r} differs from the embedding although config.json says "
                "tie_word_embeddings=true; correct one of them"
            )
    return config, params


def _leaf(params: Params, path: tuple[str, ...]) -> Any:
    for part in path:
        params = params[part]
    return params


def save_pretrained(
    directory: PathLike,
    config: ModelConfig,
    params: Params,
    tokenizer_source: PathLike | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a checkpoint that transformers loads as `GPTNeoXForCausalLM` and `load_pretrained` reads back bit for bit.

    The directory appears complete or not at all. In a job of several processes, one of them calls this.

    Args:
      directory: the destination; must not exist, or be empty.
      params: stacked parameters, fully addressable from this process; their dtype is kept.
      tokenizer_source: directory whose tokenizer files are copied.
      max_shard_bytes: larger checkpoints are split into shards of at most this size, and an index.

    Raises:
      InputError: the destination is taken, the tokenizer is missing, or `params` do not fit `config`.
    """
    directory = pathlib.Path(directory).expanduser().absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"export directory {directory} exists and is not empty; choose another or remove it")
    extras = tokenizer_files(tokenizer_source) if tokenizer_source is not None else []
    leaves = _host_leaves(config, params)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        dtypes = {leaf.dtype.name for leaf in leaves.values()}
        _write_config(temporary, config, dtypes.pop() if len(dtypes) == 1 else "float32")
        _write_weights(temporary, config, leaves, max_shard_bytes)
        for extra in extras:
            files.write_atomic(temporary / extra.name, extra.read_bytes())
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _host_leaves(config: ModelConfig, params: Params) -> dict[tuple[str, ...], np.ndarray]:
    leaves = {}
    for name, (tensor, layer) in _layout(config, head=not config.tie_embeddings).items():
        if tensor.path in leaves:
            continue
        shape = (() if layer is None else (config.num_layers,)) + tensor.leaf_shape
        try:
            leaf = np.asarray(_leaf(params, tensor.path))
        except KeyError:
            raise InputError(f"params lack {'/'.join(tensor.path)}, which holds {name!r}") from None
        if leaf.shape != shape:
            raise InputError(f"params {'/'.join(tensor.path)} has shape {leaf.shape}, but its config asks for {shape}")
        leaves[tensor.path] = leaf
    return leaves


def _write_config(directory: pathlib.Path, config: ModelConfig, dtype: str) -> None:
    hf = import_transformers().GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position,
        rotary_pct=config.rotary_pct,
        rotary_emb_base=config.rotary_base,
        layer_norm_eps=config.layer_norm_eps,
        use_parallel_residual=config.parallel_residual,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        dtype=dtype,
    )
    # Programs from before transformers 5 look for the rotary settings under their old names.
    legacy = {"rotary_pct": config.rotary_pct, "rotary_emb_base": config.rotary_base}
    files.write_json(directory / "config.json", {**hf.to_diff_dict(), **legacy})
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    files.write_json(directory / "generation_config.json", {"_from_model_config": True, **tokens})


def _write_weights(directory: pathlib.Path, config: ModelConfig, leaves: dict, max_shard_bytes: int) -> None:
    from safetensors.numpy import save_file

    layout = _layout(config, head=not config.tie_embeddings)
    shards, total, room = [[]], 0, max_shard_bytes
    for name, (tensor, _) in layout.items():
        size = math.prod(tensor.shape) * leaves[tensor.path].dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
        total += size
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = _WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            tensor, layer = layout[name]
            leaf = leaves[tensor.path]
            key = name if name == _HEAD else _PREFIX + name
            tensors[key] = tensor.to_hf(leaf if layer is None else leaf[layer])
            weight_map[key] = file
        save_file(tensors, directory / file, metadata={"format": "pt"})
        # safetensors creates files readable by their owner only, whatever the umask.
        shutil.copymode(directory / "config.json", directory / file)
    if len(shards) > 1:
        files.write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def model_fingerprint(directory: PathLike) -> str:
    """A hash of `config.json` and the weight files."""
    directory = resolve_model(directory)
    load_config(directory)
    return files.file_fingerprint(directory / "config.json", *_weight_files(directory))
