"""The programs that plans are made of, compiled for a mesh of devices that need not be there; nothing is allocated."""

import dataclasses
import sys
from typing import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.distributed.mesh import batch_sharding
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder, param_axes, param_shapes, unstack_layers
from selftrain_jax.sampling import placement
from selftrain_jax.training.optimizer import make_optimizer
from selftrain_jax.training.settings import TrainConfig
from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss, state_shardings

TRAIN_HEADROOM = 0.92
"""Share of the device memory that training is planned for; `launch/gpu.sh` gives JAX as much."""


@dataclasses.dataclass(frozen=True)
class Line:
    """`at_zero + per_row * rows` bytes per device, rows counted over all devices together."""

    at_zero: float
    per_row: float

    @classmethod
    def through(cls, points: Mapping[int, float]) -> "Line":
        """Through two (rows, bytes)."""
        (few, low), (many, high) = sorted(points.items())
        slope = (high - low) / (many - few)
        return cls(low - slope * few, slope)

    def __call__(self, rows: int) -> float:
        return self.at_zero + self.per_row * rows

    def largest(self, budget: float, multiple: int) -> int:
        """The most rows, a multiple of `multiple`, that fit the budget; 0 when none do."""
        return max(int((budget - self.at_zero) / max(self.per_row, 1)) // multiple * multiple, 0)


@dataclasses.dataclass(frozen=True)
class Lines:
    """Straight between the `points` (rows: bytes per device) and on from the last two: with few rows another part of a
    step may take most than with many."""

    points: Mapping[int, float]

    @property
    def last(self) -> Line:
        """From the last but one on."""
        return Line.through(dict(sorted(self.points.items())[-2:]))

    def __call__(self, rows: int) -> float:
        sizes, found = zip(*sorted(self.points.items()))
        return self.last(rows) if rows > sizes[-1] else float(np.interp(rows, sizes, found))

    def largest(self, budget: float, multiple: int) -> int:
        """The most rows, a multiple of `multiple`, that fit the budget; 0 when none do."""
        most = max(self.points)
        if self(most) <= budget:
            return self.last.largest(budget, multiple)
        return max((rows for rows in range(multiple, most, multiple) if self(rows) <= budget), default=0)


def compiling(what: str) -> None:
    """Says what the next minutes go into."""
    print(f"selftrain: compiling {what} ...", file=sys.stderr, flush=True)


def train_state(config: DecoderConfig, train: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes and shardings of what training carries from step to step."""
    optimizer = make_optimizer(train.optimizer, 10)
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), param_shapes(config))
    placed = state_shardings(state, mesh, param_axes(config))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)


def train_temporaries(config: DecoderConfig, train: TrainConfig, mesh: Mesh, rows: int, attention: str = "xla") -> int:
    """Bytes per device that a train step of slices of `rows` needs beside its state and batch, gradients included."""
    used = compile_step(config, train, mesh, rows, attention).memory_analysis()
    return used.temp_size_in_bytes + max(used.output_size_in_bytes - used.alias_size_in_bytes, 0)


def compile_step(
    config: DecoderConfig, train: TrainConfig, mesh: Mesh, rows: int, attention: str
) -> jax.stages.Compiled:
    """The train step of slices of `rows` on `mesh`, compiled but not run; of two slices where there are several."""
    compiling(f"a train step of {rows} rows (train), {mesh.size} devices that need not be there")
    slices = 2 if train.grad_accum > 1 else 1
    model = Decoder(config, dtype=jnp.dtype(train.dtype), remat=train.remat, attention=attention)
    step = make_train_step(next_token_loss(model), make_optimizer(train.optimizer, 10), grad_accum=slices)
    shape = (slices * rows, train.sequence_length + 1)
    batch = {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))}
    if train.document_boundaries:
        batch["segment_ids"] = batch["tokens"]
    state = train_state(config, train, mesh)
    with jax.set_mesh(mesh):
        return step.lower(state, batch).compile()


def sampling_weights(config: DecoderConfig, mesh: Mesh, dtype: str):
    """Shapes and shardings of what `placement.prepare` makes of the weights."""
    shapes = jax.eval_shape(unstack_layers, param_shapes(config))
    placed = placement.prepared_shardings(config, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=s), shapes, placed)
