"""GPT-NeoX (Black et al. 2022), the architecture of Pythia, as a Flax Linen module with stacked, scanned layers.

Parameters are a plain nested dict; those of the layers carry a leading axis L:

    embed/embedding [V, D]
    layers/attention_norm/{scale, bias} [L, D]      layers/mlp_norm/{scale, bias} [L, D]
    layers/qkv/kernel [L, D, 3, N, H], bias [L, 3, N, H]
    layers/out/kernel [L, N, H, D], bias [L, D]
    layers/up/kernel [L, D, F], bias [L, F]         layers/down/kernel [L, F, D], bias [L, D]
    final_norm/{scale, bias} [D]
    head/kernel [D, V]                              (absent with tied embeddings)
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from selftrain_jax.distributed.mesh import RULES, constrain, named_shardings
from selftrain_jax.models import ops
from selftrain_jax.models.config import DecoderConfig

Params = dict[str, Any]


@flax.struct.dataclass
class KVCache:
    """Keys (after rotation) and values, filled from slot 0 up.

    One array per layer: XLA updates those in place. Of one stacked array it makes copies at every step, which takes a
    third longer and several times the memory on a GPU."""

    keys: tuple[Float[Array, "B N S H"], ...]
    values: tuple[Float[Array, "B N S H"], ...]

    @classmethod
    def zeros(cls, config: DecoderConfig, batch_size: int, length: int, dtype=jnp.float32) -> "KVCache":
        shape = (batch_size, config.num_heads, length, config.head_dim)
        return cls(*(tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for _ in range(2)))

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]


class LayerNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x):
        features = x.shape[-1:]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), features)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), features)
        return ops.layer_norm(x, scale, bias, self.eps)


class Affine(nn.Module):
    """`einsum(equation, x, kernel) + bias`, every kernel axis named for sharding."""

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_inputs: int  # leading kernel axes that are contracted
    stddev: float

    @nn.compact
    def __call__(self, x):
        kernel_init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[self.num_inputs :])
        kernel = self.param("kernel", kernel_init, self.shape)
        bias = self.param("bias", bias_init, self.shape[self.num_inputs :])
        return jnp.einsum(self.equation, x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


class Block(nn.Module):
    """One layer: attention and MLP, side by side (parallel residual) or one after the other."""

    config: DecoderConfig
    attention: str = "auto"

    @nn.compact
    def __call__(self, carry, rotary, segment_ids, position):
        c = self.config
        d, n, h, f = c.hidden_size, c.num_heads, c.head_dim, c.intermediate_size
        # GPT-NeoX's own initialization: "small init" inward (Nguyen & Salazar 2019), 2 / (L sqrt(D)) outward.
        inward, outward = (2 / (5 * d)) ** 0.5, 2 / (c.num_layers * d**0.5)
        x, cache = carry

        normed = LayerNorm(c.layer_norm_eps, name="attention_norm")(x)
        qkv = Affine("btd,dcnh->btcnh", (d, 3, n, h), ("embed", "qkv", "heads", "head_dim"), 1, inward, name="qkv")
        q, k, v = jnp.unstack(qkv(normed), axis=2)
        q, k = ops.apply_rotary(q, *rotary), ops.apply_rotary(k, *rotary)
        if cache is None:
            mixed = ops.causal_attention(q, k, v, segment_ids, self.attention)
        else:
            cache = _write(cache[0], k, position), _write(cache[1], v, position)
            mixed = ops.cached_attention(q, *cache, position)
        out = Affine("btnh,nhd->btd", (n, h, d), ("heads", "head_dim", "embed"), 2, outward, name="out")
        attended = out(mixed)

        residual = x if c.parallel_residual else x + attended
        normed = LayerNorm(c.layer_norm_eps, name="mlp_norm")(residual)
        up = Affine("btd,df->btf", (d, f), ("embed", "mlp"), 1, inward, name="up")
        down = Affine("btf,fd->btd", (f, d), ("mlp", "embed"), 1, outward, name="down")
        x = residual + down(jax.nn.gelu(up(normed), approximate=False))
        if c.parallel_residual:
            x = x + attended
        return (constrain(x, "batch", "time", None), cache), None


def _write(store, new, position):  # store [B, N, S, H], new [B, T, N, H]
    return jax.lax.dynamic_update_slice(store, jnp.swapaxes(new, 1, 2).astype(store.dtype), (0, 0, position, 0))


class Decoder(nn.Module):
    """Token ids to hidden states; `logits` turns hidden states into fp32 logits.

    `enter`, `Block`, `final_norm` and `logits` are all of the model. Calling it scans the layers; `continue_cached` and
    `verify` take one layer at a time, of the same parts.

    Attributes:
      config: the architecture.
      dtype: compute dtype of matmuls and activations; norms, softmax and logits are fp32 regardless.
      remat: recompute each layer's activations in the backward pass instead of keeping them.
      unroll: layers per step of the layer scan; `config.num_layers` gives straight-line code.
      attention: which implementation, of `ATTENTION`; "auto" goes by device, dtype and head size.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    remat: bool = False
    unroll: int = 1
    attention: str = "auto"

    def setup(self):
        c = self.config
        stddev = (2 / (5 * c.hidden_size)) ** 0.5
        self.embed = _Table("embedding", (c.vocab_size, c.hidden_size), ("vocab", "embed"), stddev)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.attention)
        self.final_norm = LayerNorm(c.layer_norm_eps)
        if not c.tie_embeddings:
            self.head = _Table("kernel", (c.hidden_size, c.vocab_size), ("embed", "vocab"), stddev)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm: a causal pass over whole rows.

        `segment_ids` keeps packed documents apart and `positions` restarts their rotary positions.
        """
        x, rotary = self.enter(tokens, jnp.arange(tokens.shape[1]) if positions is None else positions)
        (x, _), _ = self.layers((x, None), rotary, segment_ids, 0)
        return self.final_norm(x)

    def enter(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "*B T"]
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """What the first layer reads, and the rotary tables that every layer reads."""
        x = self.embed()[tokens].astype(self.dtype)
        return x, ops.rotary_tables(positions, self.config.rotary_dim, self.config.rotary_base)

    def output_kernel(self) -> Float[Array, "D V"]:
        return self.embed().T if self.config.tie_embeddings else self.head()

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """fp32 logits: comparing and sampling tokens is not safe at bf16 resolution."""
        return project(hidden, self.output_kernel())

    def init_all(self, tokens):
        return self.logits(self(tokens))


class _Table(nn.Module):
    """One named parameter, returned as it is."""

    param_name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float

    @nn.compact
    def __call__(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        return self.param(self.param_name, init, self.shape)


def unstack_layers(params: Params) -> Params:
    """`params` with `layers` as a list of one dict per layer, as cached decoding reads them; a no-op on such."""
    if isinstance(params["layers"], (list, tuple)):
        return params
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(num_layers)]}


def continue_cached(
    model: Decoder, params: Params, tokens: Int[Array, "B T"], cache: KVCache, position: Int[Array, ""] | int
) -> tuple[Float[Array, "B V"], KVCache]:
    """(Logits of the last of `tokens`, `cache` with all of them): they continue at `position` of the cached rows.

    `params` are stacked, or unstacked by `unstack_layers`, as a loop around this should pass them.
    """
    layers, bound = unstack_layers(params)["layers"], model.bind({"params": params})
    x, rotary = bound.enter(tokens, position + jnp.arange(tokens.shape[1]))
    keys, values = [], []
    for layer, k, v in zip(layers, cache.keys, cache.values, strict=True):
        (x, (k, v)), _ = Block(model.config).apply({"params": layer}, (x, (k, v)), rotary, None, position)
        keys.append(k)
        values.append(v)
    return bound.logits(bound.final_norm(x[:, -1])), KVCache(tuple(keys), tuple(values))


def project(hidden: Float[Array, "*B D"], kernel: Float[Array, "D V"]) -> Float[Array, "*B V"]:
    """The output layer, in fp32."""
    return jnp.einsum("...d,dv->...v", hidden.astype(jnp.float32), kernel.astype(jnp.float32))


def default_unroll(config: DecoderConfig) -> int:
    """Layers per step of the layer scan: all of them on a CPU, where straight-line code is up to 20 % faster; elsewhere
    one, so that compile time does not grow with depth."""
    return config.num_layers if jax.default_backend() == "cpu" else 1


def _init(config: DecoderConfig, key: jax.Array) -> Params:
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32), method="init_all")["params"]


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Freshly initialized fp32 parameters as a plain nested dict."""
    return nn.unbox(_init(config, key))


@functools.lru_cache
def param_axes(config: DecoderConfig) -> Params:
    """The logical axis names of every parameter, in the structure of `params`; nothing is allocated."""
    boxed = jax.eval_shape(lambda: _init(config, jax.random.key(0)))
    return jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def param_shardings(config: DecoderConfig, mesh: jax.sharding.Mesh, rules: dict = RULES) -> Params:
    """The `NamedSharding` of every parameter on `mesh`, in the structure of `params`."""
    return named_shardings(mesh, param_axes(config), param_shapes(config), rules)


def param_shapes(config: DecoderConfig) -> Params:
    """`jax.ShapeDtypeStruct` of every parameter (fp32), in the structure of `params`; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
