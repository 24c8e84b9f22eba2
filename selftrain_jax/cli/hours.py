"""How long a study will take, by arithmetic from the shapes of its models."""

import dataclasses
import pathlib
from typing import Callable, Iterator, Mapping, Sequence

from selftrain_jax.core import accelerators
from selftrain_jax.core.errors import InputError
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families import published
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.run.stages import Stage
from selftrain_jax.study.expand import Study
from selftrain_jax.study.generations import MODEL
from selftrain_jax.study.model import Unit
from selftrain_jax.study.settings import StudyConfig

USED = {"sample": 0.045, "train": 0.33}
"""Share of the peak that work uses: pythia-410m sampled 55,830 tokens/s on an H200; for training see
docs/launching.md."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one unit: what it does, with how many tokens at most, and floating-point operations."""

    unit: str
    kind: str
    tokens: int
    operations: float

    def hours(self, flops: float) -> float:
        return self.operations / (flops * USED[self.kind]) / 3600


def plan_study(config: StudyConfig, accelerator: str) -> str:
    """What `selftrain plan` prints of a study.

    Raises:
      InputError: the accelerator is unknown, a model's shape cannot be had, or the study makes its models itself.
    """
    if config.lab is not None:
        raise InputError(
            "a study with a lab makes its models itself, and is not planned: see the docstring of its config"
        )
    flops = accelerators.accelerator(accelerator).flops
    study = Study(config, pathlib.Path())
    # Later generations are of the student's shape.
    students = {str(g.pipeline.workdir / MODEL): config.models[g.student].path for g in study.generations}
    costs = [cost for unit in study.units for cost in _costs(unit, students)]
    width = max(len(cost.unit) for cost in costs)
    lines = [f"{'':{width}}  {'':6}  {'tokens':>14}  hours of one {accelerator}"]
    for cost in [*costs, *(_total(costs, kind) for kind in USED)]:
        lines.append(f"{cost.unit:{width}}  {cost.kind:6}  {cost.tokens:14,}  {cost.hours(flops):10.3g}")
    whole = sum(cost.hours(flops) for cost in costs)
    return "\n".join(
        [
            *lines,
            f"{whole:.3g} device-hours in all, if every document runs to its full length and "
            + ", ".join(f"{kind} uses {share:.1%} of the peak" for kind, share in USED.items()),
            "Not counted: evaluation, tasks, audit and proxies.",
        ]
    )


def of_run(config: RunConfig, student: DecoderConfig, flops: float, devices: int) -> str:
    """What `selftrain plan` says of the time that a run takes on `devices` of these operations per second; `student`
    is taken for the shape of every model."""
    stages = Pipeline(config, pathlib.Path()).stages()
    costs = list(_costs_of_stages("", stages, config, lambda model: student))
    parts = [f"{kind} {_total(costs, kind).hours(flops) / devices:.3g}" for kind in USED]
    return (
        f"  hours on all of them together: {', '.join(parts)} (sample.num_samples documents of full length and "
        f"subset.num_tokens x train.epochs, for every arm and subset, at {_used()} of the peak; not counted: lab, "
        "planting, recovery, evaluation and audit)"
    )


def _used() -> str:
    return " and ".join(f"{share:.1%} ({kind})" for kind, share in USED.items())


def _total(costs: list[Cost], kind: str) -> Cost:
    of_kind = [cost for cost in costs if cost.kind == kind]
    tokens, operations = sum(cost.tokens for cost in of_kind), sum(cost.operations for cost in of_kind)
    return Cost(f"all {len(of_kind)}", kind, tokens, operations)


def _costs(unit: Unit, students: Mapping[str, str]) -> Iterator[Cost]:
    def shape_of(model: str) -> DecoderConfig:
        path = students.get(model, model)
        found = None if pathlib.Path(path).is_dir() else published(path)
        return found or hf.load_config(path)

    yield from _costs_of_stages(unit.name, unit.stages, unit.config, shape_of)


def _costs_of_stages(
    unit: str, stages: Sequence[Stage], config: RunConfig | None, shape_of: Callable[[str], DecoderConfig]
) -> Iterator[Cost]:
    for stage in stages:
        settings, kind = stage.settings, stage.name.partition("/")[0]
        if kind in ("corpora", "sample", "sampled"):
            shape, length = shape_of(settings["source"]), settings["max_new_tokens"]
            tokens = settings["num_samples"] * length
            yield Cost(unit, "sample", tokens, tokens * shape.train_flops_per_token(length) / 3)
        elif kind == "train":
            shape, tokens = shape_of(settings["student"]), config.subset.num_tokens * settings["epochs"]
            operations = tokens * shape.train_flops_per_token(settings["sequence_length"])
            yield Cost(unit, "train", tokens, operations)
