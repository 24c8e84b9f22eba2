"""What a study consists of: units of work, and the runs, arms and generations that they make."""

import dataclasses
import pathlib
from typing import Any, Callable, Sequence

from selftrain_jax.data.generate import sample_corpus, sampling_dtype
from selftrain_jax.distributed.mesh import local_mesh
from selftrain_jax.models import hf
from selftrain_jax.models.files.hub import resolve_model
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
      workdir, plan, names: the stages of `plan`, in `workdir`, of those names.
      needs: units whose results it reads.
      config: settings to leave in `workdir`, of a run.
      outcome: what to tell when it is done, in one line.
    """

    name: str
    workdir: pathlib.Path
    plan: Sequence[Stage]
    names: frozenset[str]
    needs: tuple[str, ...] = ()
    config: RunConfig | None = None
    outcome: Callable[[], str] = str

    def done(self) -> bool:
        return all(stages.state(self.workdir, stage) == "done" for stage in self.plan if stage.name in self.names)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training text of a run: `key` is its name there, `name` its name in the study's tables; `needs` is the unit
    that makes it, where one does."""

    key: str
    name: str
    relation: str
    origin: ControlSettings
    needs: tuple[str, ...] = ()


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


def sample_stage(name: str, model: str, revision: str, sample: Any, mesh: Callable[[], Any]) -> Stage:
    """The stage that lets `model` (a directory or hub name) write a corpus."""

    settings = dataclasses.asdict(sample) | {"model": model} | ({"revision": revision} if revision else {})
    del settings["batch_size"]  # changes nothing, and may have to be lowered half-way

    def find():
        return resolve_model(model, revision or None)

    def work(directory):

        return sample_corpus(find(), sample, directory / "corpus", mesh=local_mesh(mesh()), name=name)

    def externals():

        return {"model": hf.model_fingerprint(find()), "dtype": sampling_dtype(sample)}

    return Stage(name, settings, (), work, externals, grows=("num_samples",), together=True)
