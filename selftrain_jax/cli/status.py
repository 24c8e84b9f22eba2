"""`selftrain status`: how the stages of a run, or the units of a study, stand. Told without JAX: settings and records
are all it reads."""

import argparse
import contextlib
import functools
import pathlib
import shlex
import sys
import time
from typing import Collection, Iterable, Iterator, Mapping, Sequence

from selftrain_jax.cli.config import KEPT, load_config, reference_of
from selftrain_jax.core import progress
from selftrain_jax.core.errors import visible
from selftrain_jax.core.lock import in_use
from selftrain_jax.core.storage import Workdir
from selftrain_jax.run import stages
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.study.expand import Study
from selftrain_jax.study.failures import Failures
from selftrain_jax.study.settings import StudyConfig

WATCH_SECONDS = 2.0


def status(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain status`: what is done, started and waiting, of a run or a study."""
    reference = reference_of(arguments, KEPT["study"])
    config = load_config(reference, overrides, study=None)
    if isinstance(config, StudyConfig):
        study = Study(config, arguments.workdir)
        lines, locks = functools.partial(_unit_lines, study), lambda: study.workdir.glob(".shard-*.lock")
    else:
        pipeline = pipeline_of(config, reference, arguments, argv)
        plan = pipeline.stages()
        stages.check(pipeline.home, plan)
        lines, locks = functools.partial(_state_lines, pipeline, plan), lambda: [pipeline.place.lock]
    shown = None
    with contextlib.suppress(KeyboardInterrupt) if arguments.watch else contextlib.nullcontext():
        while True:
            at_work = any(map(in_use, locks()))
            if (now := "\n".join(lines())) != shown:
                clear = "\x1b[H\x1b[2J" if arguments.watch and sys.stdout.isatty() else ""
                print(clear + visible(shown := now, keep="\n"), flush=True)
            if not arguments.watch or not at_work:
                break
            time.sleep(WATCH_SECONDS)
        if arguments.watch:
            print("nobody is at work in the folder", flush=True)
    return 0


def _state_lines(pipeline: Pipeline, plan: Sequence[stages.Stage]) -> Iterator[str]:
    """How every stage stands, and how long the rest takes."""
    stale = stages.stale(pipeline.home, plan, models=False)
    for stage in plan:
        state = "stale" if stage.name in stale else stages.state(pipeline.home, stage)
        far = stale[stage.name].why if state == "stale" else ""
        if state == "started":
            far = stage.progress(pipeline.home / stage.name)
        yield f"{state:8} {stage.name}{far and f': {far}'}"
    if left := time_left([(pipeline.home, stage) for stage in plan], outgrown(pipeline.home, stale)):
        yield left


def _unit_lines(study: Study) -> Iterator[str]:
    """How every unit of a study stands, and how long the rest takes one unit after the other."""
    failures, done = Failures(study), 0
    for unit in study.units:
        states = [stages.state(unit.workdir, stage) for stage in unit.stages]
        far, stale = failures.reason(unit.name), stages.stale(unit.workdir, unit.stages, models=False)
        if far is not None:
            state = "failed"
        elif stale:
            state, far = "stale", next(iter(stale.values())).why
        elif set(states) == {"done"}:
            state, done = "done", done + 1
        else:
            state = "waiting" if set(states) == {"waiting"} else "started"
        if "started" in states and far is None:
            begun = unit.stages[states.index("started")]
            far = f"{begun.name} {begun.progress(unit.workdir / begun.name)}".strip()
        yield f"{state:8} {unit.name}{far and f': {far}' or ''}"
    left = time_left((unit.workdir, stage) for unit in study.units for stage in unit.stages)
    yield f"{done} of {len(study.units)} units done" + (left and f"; {left}, by one process")


def time_left(todo: Iterable[tuple[pathlib.Path, stages.Stage]], outgrown: Collection[str] = ()) -> str:
    """ "about 12 min 3 s left": what the stages to come take if they take as long as those of their kind that are done;
    what has none is named. "" where nothing is known, or left.

    Args:
      todo: stages, each with the folder that it is done in.
      outgrown: fingerprints of stages that are done, and will be done anew.
    """
    took: dict[str, list[float]] = {}
    left: list[str] = []
    for workdir, stage in todo:
        kind = stage.name if stage.name.startswith("lab/") else stage.name.partition("/")[0]
        manifest = stages.read_manifest(workdir, stage.name) if stages.state(workdir, stage) == "done" else {}
        if manifest:
            took.setdefault(kind, []).append(manifest.get("seconds", 0.0))
        if not stage.again and (not manifest or manifest.get("fingerprint") in outgrown):
            left.append(kind)
    seconds = sum(sum(took[kind]) / len(took[kind]) for kind in left if kind in took)
    unknown = ", ".join(dict.fromkeys(kind for kind in left if kind not in took))
    if not seconds:
        return ""
    return f"about {progress.duration(seconds)} left" + f", and {unknown}, not timed yet" * bool(unknown)


def outgrown(home: pathlib.Path, stale: Mapping[str, stages.Stale]) -> list[str]:
    """Fingerprints of the `stale` stages that are done, but were made from less than is asked for now."""
    names = [name for name, why in stale.items() if why.outgrown and stages.manifest_path(home, name).is_file()]
    return [stages.read_manifest(home, name)["fingerprint"] for name in names]


def pipeline_of(config: RunConfig, reference: str, arguments: argparse.Namespace, argv: Sequence[str]) -> Pipeline:
    command = "selftrain " + shlex.join(argv)
    if arguments.config is None:  # the folder's settings are what repeats it
        command = shlex.join(["selftrain", "run", f"--config={reference}", "--workdir=NEW"])
    watched = {name: vars(arguments)[name] for name in ("wandb", "profile") if name in arguments}
    return Pipeline(config, Workdir(arguments.workdir), command, **watched)
