"""One tensor of a Hugging Face checkpoint, against the leaf of `params` that it fills."""

import dataclasses
from typing import Mapping

import numpy as np

from selftrain_jax.models.config import DecoderConfig

_BEFORE = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A checkpoint tensor: reshaped to `split` and transposed by `order`, it is (one layer of) the leaf at `path`."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        return tuple(self.split[axis] for axis in self.order)

    def to_hf(self, x: np.ndarray) -> np.ndarray:
        # The safetensors writer reads raw memory and ignores strides.
        return np.ascontiguousarray(x.transpose(np.argsort(self.order))).reshape(self.shape)


def plain(*path: str, shape: tuple[int, ...]) -> Tensor:
    """What is stored as ours is: an embedding, a bias, a scale, or a kernel as `[in, out]`."""
    return Tensor(path, shape, shape, tuple(range(len(shape))))


def linear(*path: str, rows: int, columns: int) -> Tensor:
    """A kernel, stored as `[out, in]` and ours as `[in, out]`."""
    return Tensor(path, (rows, columns), (rows, columns), (1, 0))


def norm(config: DecoderConfig, name: str, *path: str) -> dict[str, Tensor]:
    """A norm over the model dimension: `name`.weight and, if it has one, `name`.bias."""
    kinds = {"weight": "scale"} | ({"bias": "bias"} if config.norm == "layer_norm" else {})
    return {f"{name}.{ours}": plain(*path, kind, shape=(config.hidden_size,)) for ours, kind in kinds.items()}


def projections(config: DecoderConfig, norms: Mapping[str, str] = _BEFORE) -> dict[str, Tensor]:
    """A layer of Llama and its relatives: projections apart, kernels `[out, in]`; `norms` are stored name -> ours."""
    c, d, f, h = config, config.hidden_size, config.intermediate_size, config.head_dim
    found = {}
    for stored, ours in norms.items():
        found |= norm(c, stored, "layers", ours)
    for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        at, size = f"self_attn.{name}_proj", heads * h
        found[f"{at}.weight"] = Tensor(("layers", name, "kernel"), (size, d), (heads, h, d), (2, 0, 1))
        if c.qkv_bias:
            found[f"{at}.bias"] = Tensor(("layers", name, "bias"), (size,), (heads, h), (0, 1))
        if name != "v" and c.qk_norm != "none":
            scale = ("layers", f"{name}_norm", "scale")
            whole = Tensor(scale, (size,), (heads, h), (0, 1))
            found[f"self_attn.{name}_norm.weight"] = whole if c.qk_norm == "projection" else plain(*scale, shape=(h,))
    heads = c.num_heads
    found["self_attn.o_proj.weight"] = Tensor(("layers", "out", "kernel"), (d, heads * h), (d, heads, h), (1, 2, 0))
    if c.out_bias:
        found["self_attn.o_proj.bias"] = plain("layers", "out", "bias", shape=(d,))
    for name, rows, columns in (("gate", f, d), ("up", f, d), ("down", d, f)):
        found[f"mlp.{name}_proj.weight"] = linear("layers", name, "kernel", rows=rows, columns=columns)
        if c.mlp_bias:
            found[f"mlp.{name}_proj.bias"] = plain("layers", name, "bias", shape=(rows,))
    return found
