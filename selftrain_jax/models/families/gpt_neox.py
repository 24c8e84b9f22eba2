"""Where each tensor of a GPT-NeoX checkpoint goes: Hugging Face names and shapes against the stacked `params`."""

import dataclasses

import numpy as np

from selftrain_jax.models.config import DecoderConfig

PREFIX = "gpt_neox."
HEAD = "embed_out.weight"


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


def layout(config: DecoderConfig, head: bool) -> dict[str, tuple[Tensor, int | None]]:
    """Checkpoint name without prefix -> (tensor, layer or None), in file order; `head` includes the output layer."""
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim

    def vector(*path: str, size: int = d) -> Tensor:
        return Tensor(path, (size,), (size,), (0,))

    def linear(*path: str, rows: int, columns: int) -> Tensor:
        return Tensor(path, (rows, columns), (rows, columns), (1, 0))

    # Rows of the fused projection are ordered head, then query/key/value, then head dimension: not three global thirds.
    layer = {
        "input_layernorm.weight": vector("layers", "attention_norm", "scale"),
        "input_layernorm.bias": vector("layers", "attention_norm", "bias"),
        "post_attention_layernorm.weight": vector("layers", "mlp_norm", "scale"),
        "post_attention_layernorm.bias": vector("layers", "mlp_norm", "bias"),
        "attention.query_key_value.weight": Tensor(("layers", "qkv", "kernel"), (3 * d, d), (n, 3, h, d), (3, 1, 0, 2)),
        "attention.query_key_value.bias": Tensor(("layers", "qkv", "bias"), (3 * d,), (n, 3, h), (1, 0, 2)),
        "attention.dense.weight": Tensor(("layers", "out", "kernel"), (d, d), (d, n, h), (1, 2, 0)),
        "attention.dense.bias": vector("layers", "out", "bias"),
        "mlp.dense_h_to_4h.weight": linear("layers", "up", "kernel", rows=f, columns=d),
        "mlp.dense_h_to_4h.bias": vector("layers", "up", "bias", size=f),
        "mlp.dense_4h_to_h.weight": linear("layers", "down", "kernel", rows=d, columns=f),
        "mlp.dense_4h_to_h.bias": vector("layers", "down", "bias"),
    }
    v = config.vocab_size
    names = {"embed_in.weight": (Tensor(("embed", "embedding"), (v, d), (v, d), (0, 1)), None)}
    for i in range(config.num_layers):
        names |= {f"layers.{i}.{name}": (tensor, i) for name, tensor in layer.items()}
    names["final_layer_norm.weight"] = vector("final_norm", "scale"), None
    names["final_layer_norm.bias"] = vector("final_norm", "bias"), None
    if head:
        names[HEAD] = linear("head", "kernel", rows=v, columns=d), None
    return names
