"""The decoder, as a Flax Linen module with stacked, scanned layers; `DecoderConfig` says which of many it is.

Parameters are a plain nested dict; those of the layers carry a leading axis L. Not every model has every one:

    embed/embedding [V, D]                          positions/embedding [P, D]
    layers/{attention_norm, mlp_norm, attention_out_norm, mlp_out_norm}/{scale, bias} [L, D]
    layers/qkv/kernel [L, D, 3, N, H], bias [L, 3, N, H]       or, apart:
    layers/q/kernel [L, D, N, H], bias [L, N, H]    layers/{k, v}/kernel [L, D, K, H], bias [L, K, H]
    layers/{q_norm, k_norm}/scale [L, H], or [L, N, H] and [L, K, H]
    layers/out/kernel [L, N, H, D], bias [L, D]
    layers/{up, gate}/kernel [L, D, F], bias [L, F] layers/down/kernel [L, F, D], bias [L, D]
    final_norm/{scale, bias} [D]
    head/kernel [D, V]                              (absent with tied embeddings)
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen import with_logical_partitioning as named
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from selftrain_jax.core.randomness import pinned
from selftrain_jax.distributed.mesh import RULES, constrain, named_shardings, target_device
from selftrain_jax.models import flash_decode, ops
from selftrain_jax.models.config import DecoderConfig, Layer
from selftrain_jax.models.contraction import dense

Params = dict[str, Any]


@flax.struct.dataclass
class KVCache:
    """Keys (after rotation) and values, filled from slot 0 up, in one array per layer: XLA updates those in place. Of a
    stacked one it makes copies at every step, which takes a third longer and several times the memory on a GPU."""

    keys: tuple[Float[Array, "B K S H"], ...]
    values: tuple[Float[Array, "B K S H"], ...]

    @classmethod
    def zeros(cls, config: DecoderConfig, batch_size: int, length: int, dtype=jnp.float32) -> "KVCache":
        """An empty cache for `length` positions."""
        shape = (batch_size, config.num_kv_heads, length, config.head_dim)
        return cls(*(tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for _ in range(2)))

    @property
    def length(self) -> int:
        """Positions that there is room for."""
        return self.keys[0].shape[2]


class Norm(nn.Module):
    """Over the last axes, whose names are `axes`."""

    config: DecoderConfig
    axes: tuple[str, ...] = ("embed",)

    @nn.compact
    def __call__(self, x):
        c, shape = self.config, x.shape[-len(self.axes) :]
        scale = self.param("scale", named(nn.initializers.constant(1 - c.norm_offset), self.axes), shape)
        if c.norm_offset:
            scale = scale.astype(jnp.float32) + c.norm_offset
        if c.norm == "rms_norm":
            return ops.rms_norm(x, scale, c.norm_eps)
        bias = self.param("bias", named(nn.initializers.zeros, self.axes), shape)
        return ops.layer_norm(x, scale, bias, c.norm_eps)


class Affine(nn.Module):
    """`einsum(equation, x, kernel) + bias`, axes named for sharding. The bias's gradient is summed in fp32."""

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_inputs: int  # leading kernel axes that are contracted
    stddev: float
    has_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", named(nn.initializers.normal(self.stddev), self.axes), self.shape)
        out = dense(self.equation, x, kernel)
        if not self.has_bias:
            return out
        shape, axes = self.shape[self.num_inputs :], self.axes[self.num_inputs :]
        return (out + self.param("bias", named(nn.initializers.zeros, axes), shape).astype(jnp.float32)).astype(x.dtype)


class Block(nn.Module):
    """One layer: attention and MLP, side by side (parallel residual) or one after the other.

    `rotary` are the tables of `Decoder.enter`, of which it takes the one that `layer` names; `apart` is explained at
    `ops.causal_attention`.

    For the gradient it keeps what norms and activations read, and computes them again: they are cheap, and what they
    compute on the way is more than half of all that would be kept. `straight`: where the layers are straight-line code,
    in which XLA would merge the two computations."""

    config: DecoderConfig
    layer: Layer
    attention: str = "auto"
    straight: bool = False

    @nn.compact
    def __call__(self, carry, rotary, apart, position):
        c = self.config
        before, after = c.norm_places != "after", c.norm_places != "before"
        x, cache = carry

        normed = self._norm(name="attention_norm")(x) if before else x
        attended, cache = self.attend(normed, cache, rotary, apart, position)
        if after:
            attended = self._norm(name="attention_out_norm")(attended)
        residual = x if c.parallel_residual else x + attended
        given = self.mlp(self._norm(name="mlp_norm")(residual) if before else residual)
        if after:
            given = self._norm(name="mlp_out_norm")(given)
        x = residual + given
        if c.parallel_residual:
            x = x + attended
        return (constrain(x, "batch", "time", None), cache), None

    def _norm(self, axes=("embed",), *, name):
        return nn.remat(Norm, prevent_cse=self.straight)(self.config, axes, name=name)

    def attend(self, x, cache, rotary, apart, position):
        """`[B, T, D]` attention output of the normed `x` `[B, T, D]`, and the cache with what it wrote."""
        c = self.config
        d, n, k, h = c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim
        inward, outward = _stddevs(c)
        if c.fused_qkv:
            axes = ("embed", "qkv", "heads", "head_dim")
            qkv = Affine("btd,dcnh->btcnh", (d, 3, n, h), axes, 1, inward, c.qkv_bias, name="qkv")
            queries, keys, values = jnp.unstack(qkv(x), axis=2)
        else:
            queries, keys, values = (
                Affine("btd,dnh->btnh", (d, m, h), ("embed", heads, "head_dim"), 1, inward, c.qkv_bias, name=name)(x)
                for name, m, heads in (("q", n, "heads"), ("k", k, "kv_heads"), ("v", k, "kv_heads"))
            )
        if c.qk_norm != "none":
            first = {"head": 1, "projection": 0}[c.qk_norm]
            queries = self._norm(("heads", "head_dim")[first:], name="q_norm")(queries)
            keys = self._norm(("kv_heads", "head_dim")[first:], name="k_norm")(keys)
        if self.layer.rotary is not None:
            table = rotary[c.rotaries.index(self.layer.rotary)]
            queries, keys = ops.apply_rotary(queries, *table), ops.apply_rotary(keys, *table)
        switches = dict(scale=c.attention_scale, window=self.layer.window, cap=c.attention_softcap)
        if cache is None:
            mixed = ops.causal_attention(queries, keys, values, apart, self.attention, **switches)
        else:
            cache = _write(cache[0], keys, position), _write(cache[1], values, position)
            kernel = flash_decode.possible(queries, cache[0], target_device())
            attend = flash_decode.flash_decode if kernel else ops.cached_attention
            mixed = attend(queries, *cache, position, **switches)
        axes = ("heads", "head_dim", "embed")
        return Affine("btnh,nhd->btd", (n, h, d), axes, 2, outward, c.out_bias, name="out")(mixed), cache

    def mlp(self, x):
        """`[B, T, D]` feed-forward output of the normed `x` `[B, T, D]`."""
        c = self.config
        d, f = c.hidden_size, c.intermediate_size
        inward, outward = _stddevs(c)

        def widen(name):
            return Affine("btd,df->btf", (d, f), ("embed", "mlp"), 1, inward, c.mlp_bias, name=name)(x)

        activate = jax.checkpoint(ops.activate, prevent_cse=self.straight, static_argnums=0)
        wide = activate(c.activation, *map(widen, ("gate", "up") if c.gated else ("up",)))
        return Affine("btf,fd->btd", (f, d), ("mlp", "embed"), 1, outward, c.mlp_bias, name="down")(wide)


def _stddevs(config: DecoderConfig) -> tuple[float, float]:
    """GPT-NeoX's own initialization: "small init" inward (Nguyen & Salazar 2019), 2 / (L sqrt(D)) outward."""
    return (2 / (5 * config.hidden_size)) ** 0.5, 2 / (config.num_layers * config.hidden_size**0.5)


def _write(store, new, position):  # store [B, K, S, H], new [B, T, K, H]
    written = jax.lax.dynamic_update_slice(store, jnp.swapaxes(new, 1, 2).astype(store.dtype), (0, 0, position, 0))
    return jax.lax.platform_dependent(written, tpu=_as_given, default=lambda x: x)


def _as_given(store):
    """`store` as arrays of its shape lie in a TPU's memory outside of programs: S last, unless H fills lanes of 128.
    Else a loop of one query a head holds it twice, as `[S, K, B, H]` with H padded to 128."""
    order = (0, 1, 2, 3) if store.shape[3] % 128 == 0 else (0, 1, 3, 2)
    return with_layout_constraint(store, Layout(order))


class Decoder(nn.Module):
    """Token ids to hidden states; `logits` turns hidden states into fp32 logits.

    `enter`, `Block`, `final_norm`, `logits` are all of it. Calling it scans the layers; others take one at a time.

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
        """Declares the weights, as Flax asks."""
        c = self.config
        stddev, _ = _stddevs(c)
        self.embed = _Table("embedding", (c.vocab_size, c.hidden_size), ("vocab", "embed"), stddev)
        if c.learned_positions:
            self.positions = _Table("embedding", (c.max_position, c.hidden_size), (None, "embed"), stddev)
        self.layers = nn.scan(
            self.block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, c.layer(0), self.attention, self.unroll > 1)
        self.final_norm = Norm(c)
        if not c.tie_embeddings:
            self.head = _Table("kernel", (c.hidden_size, c.vocab_size), ("embed", "vocab"), stddev)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        branch: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm: a causal pass over whole rows; NaN at positions that were not learned.

        `segment_ids` keeps packed documents apart and `positions` restarts their rotary positions; `branch` instead,
        with `positions`, makes a row several continuations of one beginning (`ops.Branches`).
        """
        apart = segment_ids if branch is None else ops.Branches(branch, positions)
        x, rotary = self.enter(tokens, jnp.arange(tokens.shape[1]) if positions is None else positions)
        if len(self.config.pattern) == 1 or self.is_initializing():  # parameters are the same in layers of any kind
            (x, _), _ = self.layers((x, None), rotary, apart, 0)
        else:
            x = self._scan_pattern(x, rotary, apart)
        return self.final_norm(x)

    @property
    def block(self) -> type[Block]:
        return nn.remat(Block, prevent_cse=False) if self.remat else Block

    def _scan_pattern(self, x, rotary, apart):
        """All layers, as a scan over whole patterns of different ones; those of a last, shorter pattern follow."""
        c, params = self.config, self.variables["params"]["layers"]
        period = len(c.pattern)
        whole = c.num_layers // period

        def run(x, first, count, params):
            for i in range(count):
                layer = jax.tree.map(lambda leaf: leaf[i], params)  # noqa: B023
                block = self.block(c, c.layer(first + i), self.attention, self.unroll > 1, parent=None)
                (x, _), _ = block.apply({"params": layer}, (x, None), rotary, apart, 0)
            return x

        def fold(leaf):
            return leaf[: whole * period].reshape(whole, period, *leaf.shape[1:])

        unroll = max(self.unroll // period, 1)
        x, _ = jax.lax.scan(
            lambda x, params: (run(x, 0, period, params), None), x, jax.tree.map(fold, params), unroll=unroll
        )
        rest = jax.tree.map(lambda leaf: leaf[whole * period :], params)
        return run(x, whole * period, c.num_layers - whole * period, rest)

    def enter(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "*B T"]
    ) -> tuple[Float[Array, "B T D"], tuple[tuple[Array, Array], ...]]:
        """What the first layer reads, and the rotary tables of `config.rotaries`."""
        c = self.config
        x = self.embed()[tokens].astype(self.dtype)
        if c.scale_embeddings:
            x = x * jnp.asarray(c.hidden_size**0.5, self.dtype)
        if c.learned_positions:
            x = (x + jnp.take(self.positions(), positions, 0, mode="fill").astype(jnp.float32)).astype(self.dtype)
        return x, tuple(ops.rotary_tables(positions, c.rotary_dim(rotary), rotary) for rotary in c.rotaries)

    def output_kernel(self) -> Float[Array, "D V"]:
        """The output layer's weights: the transposed embedding where the two are tied."""
        return self.embed().T if self.config.tie_embeddings else self.head()

    def output_columns(self, begin: Int[Array, ""] | int, width: int) -> Float[Array, "D W"]:
        """Those of `output_kernel` from `begin` on. In a loop, a tied embedding is thus never transposed as a whole."""
        if self.config.tie_embeddings:
            return jax.lax.dynamic_slice_in_dim(self.embed(), begin, width, axis=0).T
        return jax.lax.dynamic_slice_in_dim(self.head(), begin, width, axis=1)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """fp32 logits: comparing and sampling tokens is not safe at bf16 resolution."""
        return project(hidden, self.output_kernel(), self.config.logit_softcap)

    def init_all(self, tokens):
        """Logits by way of every parameter, so that initialization makes all of them."""
        return self.logits(self(tokens))


class _Table(nn.Module):
    """One named parameter, returned as it is."""

    param_name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float

    @nn.compact
    def __call__(self):
        return self.param(self.param_name, named(nn.initializers.normal(self.stddev), self.axes), self.shape)


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

    `params` are stacked, or unstacked by `unstack_layers`, as a loop around this should pass them. NaN: no more room.
    """
    layers, bound = unstack_layers(params)["layers"], model.bind({"params": params})
    x, rotary = bound.enter(tokens, position + jnp.arange(tokens.shape[1]))
    stores = []
    for i, (layer, *store) in enumerate(zip(layers, cache.keys, cache.values, strict=True)):
        block = Block(model.config, model.config.layer(i))
        (x, store), _ = block.apply({"params": layer}, (x, store), rotary, None, position)
        stores.append(store)
    x = jnp.where(position + tokens.shape[1] <= cache.length, x[:, -1], jnp.nan)
    return bound.logits(bound.final_norm(x)), KVCache(*zip(*stores))


def project(
    hidden: Float[Array, "*B D"], kernel: Float[Array, "D V"], cap: float | None = None
) -> Float[Array, "*B V"]:
    """The output layer and its soft-cap, in fp32."""
    logits = jnp.einsum("...d,dv->...v", hidden.astype(jnp.float32), kernel.astype(jnp.float32))
    return ops.softcap(logits, cap)


_LONG = 2e17
"""Seven minutes of an H200. Straight-line code made pythia-1.4b train a tenth faster there, in a fifth less memory, and
compile 35 s longer (benchmarks/RESULTS.md)."""


def default_unroll(
    config: DecoderConfig, mesh: jax.sharding.Mesh | None = None, flops: float = 0.0, remat: bool = False
) -> int:
    """Layers per step of the layer scan: all of them, as straight-line code, on a CPU, where it is up to 20 % faster,
    and on a GPU that is to do `flops` operations and more than `_LONG`; else one, so that compile time does not grow
    with depth. One, too, with `remat`: in straight-line code nothing keeps XLA from recomputing all layers before it
    needs them (a step of pythia-410m, 8 rows of 2,048, fp32, then takes 49 GiB on a CPU, and 5.6 in a loop)."""
    platform = target_device(mesh).platform
    straight = platform == "cpu" or platform == "gpu" and flops > _LONG
    return config.num_layers if straight and not remat else 1


def _init(config: DecoderConfig, key: jax.Array) -> Params:
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32), method="init_all")["params"]


@pinned()
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
