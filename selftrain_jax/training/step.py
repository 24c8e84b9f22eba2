"""The train step that other projects import: pure, jitted, sharded, no config object and no Flax type at its border.

optimizer = optax.adamw(1e-4)
train_step = make_train_step(next_token_loss(Decoder(config)), optimizer)
state = TrainState.create(params, optimizer)
state, metrics = train_step(state, {"tokens": tokens})   # tokens [B, T + 1]; `state` is donated
"""

import functools
import warnings
from typing import Any, Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.distributed.mesh import (
    RULES,
    batch_sharding,
    batch_ways,
    check_mesh,
    named_shardings,
    replicated,
    shards_params,
)
from selftrain_jax.models import ops

Batch = dict[str, jax.Array]
LossFn = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class TrainState:
    """All that training carries from step to step; `step` counts finished optimizer updates."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def next_token_loss(model, chunk: int = 256) -> LossFn:
    """Next-token cross-entropy of a language model: `(params, batch) -> (summed -log p in nats, number of targets)`.

    `batch["tokens"]` is int `[B, T + 1]`. With `batch["segment_ids"]`, of the same shape, packed documents do not see
    each other: attention stays inside a segment, positions restart, and no target is predicted across a boundary.

    Args:
      model: a `Decoder`; or any function `(params, tokens [B, T]) -> logits [B, T, V]`, or `-> (hidden states [B, T,
        D], output kernel [D, V])`, whose logits then never exist as a whole.
      chunk: time steps whose logits exist at once.

    Raises:
      InputError: `model` is a Flax module of another kind, or `chunk` is below 1; and on the first call, when there are
        no tokens, rows are too short or longer than the positions that a model learned, segments are of another shape,
        the batch holds what is not read here, `params` are those of another `Decoder`, or a function is given packed
        documents, which it cannot keep apart.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk} must be at least 1")
    is_ours = hasattr(model, "output_kernel")
    if not is_ours and hasattr(model, "apply"):
        raise InputError(f"{type(model).__name__} is not a Decoder: pass a function (params, tokens) -> logits instead")

    def of_module(params, inputs, segments):
        from selftrain_jax.models.checks import check_params  # the step itself needs no model

        check_params(params, model.config)
        positions, config = None if segments is None else positions_in_segment(segments), model.config
        if segments is None and config.learned_positions and inputs.shape[1] > config.max_position:
            shapes = f"{inputs.shape[1]} tokens for a model that learned {config.max_position} positions"
            raise InputError(f"batch rows of {shapes}: shorten them, or keep short documents apart by segment_ids")
        hidden = model.apply({"params": params}, inputs, segment_ids=segments, positions=positions)
        return hidden, model.apply({"params": params}, method="output_kernel")

    def of_function(params, inputs, segments):
        if segments is not None:
            raise InputError("segment_ids need a model that takes them: leave them out, or write a loss of your own")
        return model(params, inputs)

    forward = of_module if is_ours else of_function
    cap = model.config.logit_softcap if is_ours else None

    def loss_fn(params, batch):
        if not isinstance(batch, dict) or "tokens" not in batch:
            raise InputError('batch must be a dict with "tokens" [B, T + 1]: add them, or write a loss of your own')
        tokens = batch["tokens"]
        if unread := set(batch) - {"tokens", "segment_ids"}:
            raise InputError(f"batch entry {unread.pop()!r} is not read by next_token_loss: write a loss of your own")
        if tokens.ndim != 2 or tokens.shape[1] < 2 or tokens.dtype.kind not in "iu":
            raise InputError(
                f"batch tokens of shape {tokens.shape} and dtype {tokens.dtype} must be ids [B, T + 1], T at least 1"
            )
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        counts = jnp.ones(targets.shape, jnp.float32)
        segments = None
        if "segment_ids" in batch:
            if batch["segment_ids"].shape != tokens.shape:
                shapes = f"{batch['segment_ids'].shape}, not {tokens.shape}"
                raise InputError(f"batch segment_ids of shape {shapes}: they must be of the shape of tokens")
            runs = _runs(batch["segment_ids"])
            segments, counts = runs[:, :-1], (runs[:, 1:] == runs[:, :-1]).astype(jnp.float32)
        out = forward(params, inputs, segments)
        num_ids = (out[1] if isinstance(out, tuple) else out).shape[-1]
        known = (jnp.minimum(inputs, targets) >= 0) & (jnp.maximum(inputs, targets) < num_ids)
        weights = jnp.where((counts > 0) & ~known, jnp.nan, counts)
        if isinstance(out, tuple):
            return ops.cross_entropy_sum(*out, targets, weights, chunk, cap), jnp.sum(counts)
        losses = optax.softmax_cross_entropy_with_integer_labels(out.astype(jnp.float32), targets)
        return jnp.sum(weights * losses), jnp.sum(counts)

    return loss_fn


def positions_in_segment(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each position's distance from the start of its run of equal segment ids."""
    index = jnp.arange(segment_ids.shape[1])
    return index - jax.lax.cummax(jnp.where(_starts(segment_ids), index, 0), axis=1)


def _starts(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Where a run of equal ids begins."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.concatenate([jnp.ones_like(segment_ids[:, :1], bool), changes], axis=1)


def _runs(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Runs of equal ids, numbered from 1: an id that comes again is that of another document."""
    return jnp.cumsum(_starts(segment_ids), axis=1, dtype=jnp.int32)


def accumulated(loss_fn: LossFn, grad_accum: int) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array, Any]]:
    """`(params, batch) -> (loss sum, weight sum, gradient of the sum)`, over `grad_accum` equal slices of the batch.

    Gradients of several slices are summed up, and given, in fp32 at least: a sum in bfloat16 stops growing when what is
    added is 1/256 of it.
    """

    def checked(params, batch):
        out = loss_fn(params, batch)
        if not isinstance(out, tuple) or [jnp.shape(x) for x in jax.tree.leaves(out)] != [(), ()]:
            raise InputError("loss_fn must return two scalars, (sum of losses, sum of weights), not their quotient")
        return out

    value_and_grad = jax.value_and_grad(checked, has_aux=True)

    def whole(params, batch):
        (loss, weight), grads = value_and_grad(params, batch)
        return loss, jnp.asarray(weight, jnp.float32), grads

    def sliced(params, batch):
        # Slice i takes rows i, i + grad_accum, ...: every slice is then spread over all devices like the batch itself.
        slices = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, grad_accum, *x.shape[1:]), 1, 0), batch)

        def body(total, one):
            return jax.tree.map(jnp.add, total, whole(params, one)), None

        zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(lambda x: jnp.zeros_like(x, _at_least_fp32(x)), params))
        return jax.lax.scan(body, zero, slices)[0]

    return whole if grad_accum == 1 else sliced


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    rules: dict = RULES,
    grad_accum: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `train_step(state, batch) -> (state, metrics)`; `state` is donated. Arrays of NumPy in a batch are
    copied: they may be filled again while the step runs.

    Args:
      loss_fn: `(params, batch) -> (sum of losses, sum of weights)`; the mean of the whole batch is minimized, however
        it is cut up.
      optimizer: any optax transformation.
      mesh: devices to spread the batch over. The state keeps the shardings it arrives with (`state_shardings`).
      rules: the table that says which mesh axes a batch is spread over, for a mesh with axis names of its own.
      grad_accum: number of slices that the batch is processed in, one after the other.

    Returns:
      The step. Its metrics are fp32 scalars: `loss` (nats per target), `grad_norm` (before clipping), `param_norm`,
      `update_norm` (what the optimizer asks for) and `targets`.

    Raises:
      InputError: `mesh` lacks an axis that `rules` name, or has axes of another type than Auto; and when called with a
        batch whose rows `grad_accum` or the devices of its axis do not divide, or with a loss of another form.

    Warns:
      InputWarning: `rules` shard parameters over `mesh`, but all of the state is whole on every device; or parameters
        are in half precision, which loses most of a small update.
    """
    if mesh is not None:
        check_mesh(mesh, rules)
    if not isinstance(grad_accum, int) or grad_accum < 1:
        raise InputError(f"grad_accum={grad_accum!r} must be a whole number, at least 1")
    loss_and_grad = accumulated(loss_fn, grad_accum)

    def train_step(state: TrainState, batch: Batch):
        if cut := [rows for rows in _row_counts(batch) if rows % grad_accum]:
            raise InputError(f"batch of {cut[0]} rows cannot be cut into grad_accum={grad_accum} equal slices")
        _warn_of_half_precision(state.params)
        loss, weight, grads = loss_and_grad(state.params, batch)
        # In fp32, since weights add up to more than half precision holds; a batch without a target has no gradient.
        share = 1 / jnp.where(weight == 0, 1, weight)
        grads = jax.tree.map(lambda g, p: (g * share).astype(p.dtype), grads, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss * share,
            "grad_norm": _norm(grads),
            "param_norm": _norm(params),
            "update_norm": _norm(updates),
            "targets": weight,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    jitted = functools.partial(jax.jit, train_step, donate_argnums=0)
    if mesh is None:
        step = jitted()

        def train_step_of_own(state, batch):
            return step(state, _copied(batch))

        train_step_of_own.lower = step.lower
        return train_step_of_own

    @functools.lru_cache
    def jitted_for(structure, shardings):
        placement = jax.tree.unflatten(structure, shardings)
        if shards_params(mesh, rules) and all(s is None or s.is_fully_replicated for s in shardings):
            text = f"all of the state lies on every device of mesh {dict(mesh.shape)}, which could share it: place it"
            warnings.warn(f"{text} by state_shardings, or leave parameters out of rules", InputWarning, stacklevel=3)
        return jitted(in_shardings=(None, batch_sharding(mesh, rules)), out_shardings=(placement, None))

    ways = batch_ways(mesh, rules)

    def train_step_on_mesh(state, batch):
        if uneven := [rows for rows in _row_counts(batch) if rows % ways]:
            raise InputError(f"batch of {uneven[0]} rows cannot be spread over {ways} devices: make it a multiple")
        leaves, structure = jax.tree.flatten(state)
        held = (getattr(leaf, "sharding", None) for leaf in leaves)
        held = tuple(s if isinstance(s, NamedSharding) and s.mesh == mesh else None for s in held)
        with jax.set_mesh(mesh):
            return jitted_for(structure, held)(state, _copied(batch))

    return train_step_on_mesh


def _copied(batch: Batch) -> Batch:
    """`batch` with arrays of its own in place of NumPy's, which JAX on a CPU may read where they lie, and later."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, batch)


def _warn_of_half_precision(params: Any) -> None:
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if half := sorted(kinds & {"bfloat16", "float16"}):
        text = f"parameters in {half[0]} lose what an update changes by less than a few thousandths of them"
        warnings.warn(f"{text}: keep them in float32, and compute in {half[0]} by Decoder(config, dtype)", InputWarning)


def _at_least_fp32(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _norm(tree: Any) -> jax.Array:
    return optax.tree.norm(jax.tree.map(lambda x: x.astype(_at_least_fp32(x)), tree)).astype(jnp.float32)


def _row_counts(batch: Batch) -> list[int]:
    return [shape[0] if shape else 1 for shape in map(jnp.shape, jax.tree.leaves(batch))]


def state_shardings(state: TrainState, mesh: Mesh, axes: Any, rules: dict = RULES) -> TrainState:
    """A sharding per leaf of `state`: optimizer moments lie where their parameters lie, scalars everywhere.

    `axes` holds the logical names of every parameter, for example `decoder.param_axes(config)`.
    """
    of_params = named_shardings(mesh, axes, state.params, rules)
    everywhere = replicated(mesh)
    flat = zip(jax.tree.leaves_with_path(state.params), jax.tree.leaves(of_params), strict=True)
    known = {tuple(path): (leaf.shape, sharding) for (path, leaf), sharding in flat}

    def place(path, leaf):
        # A moment's path ends with that of its parameter, whatever optax wraps around it; some are of another shape.
        for start in range(len(path) + 1):
            shape, sharding = known.get(tuple(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return everywhere

    return TrainState(everywhere, of_params, jax.tree.map_with_path(place, state.opt_state))
