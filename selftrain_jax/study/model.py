"""What a study consists of: units of work, and the runs, arms and generations that they make."""

import dataclasses
import pathlib
from typing import Callable, Sequence

from selftrain_jax.run import stages
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.run.stages import Stage
from selftrain_jax.study.settings import Condition


@dataclasses.dataclass(frozen=True)
class Unit:
    """Work that one process does in one go.

    Attributes:
      name: unique in the study.
      workdir, stages: what is done where, in this order.
      needs: units whose results it reads.
      config: settings to leave in `workdir`, of a run.
      outcome: what to tell when it is done, in one line.
    """

    name: str
    workdir: pathlib.Path
    stages: Sequence[Stage]
    needs: tuple[str, ...] = ()
    config: RunConfig | None = None
    outcome: Callable[[], str] = str

    def done(self) -> bool:
        """Whether every stage is done, with the settings of now, and none is stale."""
        done = all(stages.state(self.workdir, stage) == "done" for stage in self.stages)
        return done and not stages.stale(self.workdir, self.stages, settings=True)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training text of a run: `key` is its name there, `name` its name in the study's tables; `needs` is the unit
    that makes it, where one does; `temperature` that of sampling, where the study names some."""

    key: str
    name: str
    relation: str
    origin: ControlSettings
    needs: tuple[str, ...] = ()
    temperature: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """All arms of one student at one condition and seed."""

    name: str
    student: str
    condition: Condition
    seed: int
    arms: tuple[Arm, ...]
    pipeline: Pipeline


@dataclasses.dataclass(frozen=True)
class Generation:
    """One turn of the loop, from the second on: `pipeline` trains the model of the turn before."""

    student: str
    mode: str
    seed: int
    number: int
    pipeline: Pipeline

    @property
    def name(self) -> str:
        """That of its unit, and of its folder in the study."""
        return f"generations/{self.mode}/{self.student}-{self.seed}/{self.number}"
