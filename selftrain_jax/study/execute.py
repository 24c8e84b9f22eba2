"""Doing a study: its units one after the other, by one process or several (shards), and its page at the end.

What the stages of a study work with is imported here already, as `run.execute` does it.
"""

import contextlib
import functools
import os
import pathlib
import re
import sys
import time
from typing import Callable, Sequence

from selftrain_jax.core import files, progress
from selftrain_jax.core.errors import InputError, told
from selftrain_jax.core.lock import held
from selftrain_jax.core.storage import Workdir
from selftrain_jax.distributed.mesh import configure_jax, describe
from selftrain_jax.report.page import write_study_report
from selftrain_jax.report.study_tables import format_study
from selftrain_jax.report.tables import terminal_columns
from selftrain_jax.run import execute, export, stages  # noqa: F401
from selftrain_jax.run.checks import check_attention
from selftrain_jax.run.pipeline import save_config
from selftrain_jax.study import noise, proxies  # noqa: F401
from selftrain_jax.study.checks import check_study
from selftrain_jax.study.collect import study_data
from selftrain_jax.study.expand import Study
from selftrain_jax.study.failures import NEEDS_FAILED, Failures
from selftrain_jax.study.model import Unit
from selftrain_jax.study.settings import StudyConfig
from selftrain_jax.training.loop import TrainingDiverged

WAIT_SECONDS, REMIND_SECONDS = 2.0, 600.0
Say = Callable[[str], None]


def run_study(
    config: StudyConfig, workdir: pathlib.Path, command: str, shard: str, report_only: bool, redo: bool, say: Say
) -> None:
    """Does the units of shard "I/N" and, in shard 0, writes the page when all shards are done; `redo`: also anew what
    was made with other settings or from other files, and what was made from that.

    Raises:
      InputError: bad settings or files, before any work; or units that failed, after all others are done.
      RunStopped: told to stop, or a disk or another process failed.
    """
    index, count = _shard(shard)
    if int(os.environ.get("JAX_NUM_PROCESSES") or 1) > 1:
        raise InputError(
            f"JAX_NUM_PROCESSES={os.environ['JAX_NUM_PROCESSES']}: a study takes no job of several processes; unset "
            "it, and give each process a shard of its own with --shard"
        )
    configure_jax()
    if files.is_remote(workdir):
        raise InputError(f"workdir {workdir}: a study needs a folder on disk, or a bucket that is mounted as one")
    study = Study(config, workdir, command)
    if (study.workdir / "config.json").is_file():
        raise InputError(f"workdir {workdir} is the folder of a run: name another --workdir for the study")
    if report_only and not (study.workdir / "study.json").is_file():
        raise InputError(f"workdir {workdir} holds no study to report on")
    check_study(study, redo=redo)
    if report_only:
        _report(study, say)
        return
    files.check_no_pattern(study.workdir)
    for run in study.first_runs.values():
        check_attention(run.pipeline)
    save_config(study.workdir, config, "study.json")
    lock = study.workdir / f".shard-{shard.replace('/', '-of-')}.lock"
    log = progress.kept_in(study.workdir / (progress.LOG if count == 1 else f"log-{index}-of-{count}.txt"))
    with held(lock, f"workdir {study.workdir}: shard {shard} of this study is being done", fenced=True), log:
        for other in study.workdir.glob(".shard-*.lock"):
            if not other.match(f"*-of-{count}.lock"):
                with held(other, f"workdir {study.workdir}: this study, cut another way, is being done"):
                    pass
        progress.note(f"begun: {command}")
        print(f"selftrain: {describe(study.mesh, study.workdir)}, shard {index} of {count}", file=sys.stderr)
        execution = Execution(study, say, redo)
        failures = execution.do([i for i in range(len(study.units)) if i % count == index])
        if index == 0:
            failures = execution.wait_for_all()
            for place in () if failures else {unit.workdir for unit in study.units}:
                Workdir(place).redone()
            _report(study, say)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(study.units)} units failed, the rest is done: {'; '.join(failures[:3])}"
        )


class Execution:
    """One process at the units of a study; `say` is told what happens, line by line."""

    def __init__(self, study: Study, say: Say, redo: bool = False):
        self._units, self._say, self._redo = study.units, say, redo
        self._by_name = {unit.name: unit for unit in study.units}
        self._failures = Failures(study)

    def do(self, mine: Sequence[int]) -> list[str]:
        """Does the units of these numbers; waits for others where it needs them.

        What fails, by its input or because its numbers break, is told and left out with all that needs it; the rest is
        done. What was done before is compared with what it was made from.

        Returns:
          What failed, one line each.
        """
        failed = []
        for number in mine:
            self._failures.forget(self._units[number].name)
        for number in mine:
            unit = self._units[number]
            title = f"[{number + 1}/{len(self._units)}] {unit.name}"
            try:
                self._wait_for(unit.needs, title)
                self._do(unit, title)
            except (InputError, TrainingDiverged) as e:
                reason = told(e)
                failed.append(f"{unit.name}: {reason}")
                self._say(f"{title}: FAILED: {reason}")
                self._failures.write(unit.name, reason)
        return failed

    def _do(self, unit: Unit, title: str) -> None:
        self._move_outdated(unit, title)
        done = unit.done()
        if unit.config is not None:
            save_config(unit.workdir, unit.config)
        if done:
            self._say(f"{title}: done before")
        todo = [stage.name for stage in unit.stages if not (done and stage.again)]
        for names in [[name] for name in todo] if self._redo else [todo]:
            execute.run(unit.workdir, unit.stages, names.__contains__, functools.partial(self._say_of_stage, title))
            self._move_outdated(unit, title)  # what reads a model that was made anew tells that only now
        if not done and (outcome := unit.outcome()):
            self._say(f"{title}: {outcome}")

    def _move_outdated(self, unit: Unit, title: str) -> None:
        if not self._redo:
            return
        place, outdated = Workdir(unit.workdir), stages.outdated(unit.workdir, unit.stages)
        for name, why in reversed(outdated.items()):
            self._say(f"{title}, {name}: anew, since {why}")
            place.keep_until_redone(name)
        # The report of what was: whoever reads a model of the run, perhaps before its new report, would find it stale.
        beside = (stage for other in self._units if other.workdir == unit.workdir for stage in other.stages)
        for stage in beside if outdated else ():
            if stage.again and stages.state(unit.workdir, stage) != "waiting":
                with contextlib.suppress(FileNotFoundError):  # another shard did it
                    place.keep_until_redone(stage.name)

    def _say_of_stage(self, title: str, line: str) -> None:
        """Lines of a run name its own stages; here the unit goes before."""
        stage = line.split("] ", 1)[-1]
        if not stage.endswith("done before"):
            self._say(title if title.endswith(f"] {stage}") else f"{title}, {stage}")

    def _wait_for(self, names: Sequence[str], title: str) -> None:
        """Returns when the units are done; `InputError` when one of them failed, or a shard that was started at the
        same moment makes it with other settings."""
        told = None
        for name in names:
            while not self._by_name[name].done():
                if self._failures.reason(name) is not None:
                    raise InputError(NEEDS_FAILED.format(name))
                if told is None or time.monotonic() - told > REMIND_SECONDS:
                    self._say(
                        f"{title}: waiting for {name}, the work of another shard; if none runs any more, start it "
                        "again, or the study without --shard"
                    )
                    told = time.monotonic()
                if not self._redo:
                    stages.check(self._by_name[name].workdir, self._by_name[name].stages)
                time.sleep(WAIT_SECONDS)

    def wait_for_all(self) -> list[str]:
        """Returns when every unit is done or has failed: the failures, one line each."""
        failed = []
        for unit in self._units:
            try:
                self._wait_for([unit.name], "report")
            except InputError as e:
                failed.append(f"{unit.name}: {self._failures.reason(unit.name) or told(e)}")
        return failed


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise InputError(f"--shard={text!r} must be I/N with 0 <= I < N, for example 0/2 and 1/2")
    return int(found[1]), int(found[2])


def _report(study: Study, say: Say) -> None:
    data = study_data(study)
    write_study_report(study.workdir / "report", data)
    say("\n" + format_study(data, terminal_columns()))
    say(f"report: {study.workdir / 'report' / 'study.html'}")
