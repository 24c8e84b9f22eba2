"""`selftrain study`: the units of a study, one after the other, and its page."""

import dataclasses
import os
import pathlib
import re
import sys
from typing import Callable

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import describe, enable_compilation_cache
from selftrain_jax.report.page import format_study, write_study_report
from selftrain_jax.study.collect import study_data
from selftrain_jax.study.plan import Study
from selftrain_jax.study.settings import StudyConfig


def run_study(
    config: StudyConfig, workdir: pathlib.Path, command: str, shard: str, report_only: bool, say: Callable[[str], None]
) -> int:
    """Does the units of shard "I/N" and, in shard 0, writes the page when all shards are done.

    Raises:
      InputError: bad settings or files, before any work; or units that failed, after all others are done.
    """
    index, count = _shard(shard)
    if int(os.environ.get("JAX_NUM_PROCESSES") or 1) > 1:
        raise InputError(
            f"JAX_NUM_PROCESSES={os.environ['JAX_NUM_PROCESSES']}: a study takes no job of several processes; unset "
            "it, and "
            "give each process a shard of its own with --shard"
        )
    enable_compilation_cache()
    if files.is_remote(workdir):
        raise InputError(f"workdir {workdir}: a study needs a folder on disk, or a bucket that is mounted as one")
    study = Study(config, workdir, command)
    _check_folder(study.workdir, report_only)
    study.check()
    if report_only:
        _report(study, say)
        return 0
    _save(study)
    lock = study.workdir / f".shard-{shard.replace('/', '-of-')}.lock"
    with files.locked(lock, f"workdir {study.workdir}: shard {shard} of this study is being done"):
        print(f"selftrain: {describe(study.mesh, study.workdir)}, shard {index} of {count}", file=sys.stderr)
        failures = study.execute((index, count), say)
        if index == 0:
            failures = study.wait_for_all(say)
            _report(study, say)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(study.units)} units failed, the rest is done: {'; '.join(failures[:3])}"
        )
    return 0


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise InputError(f"--shard={text!r} must be I/N with 0 <= I < N, for example 0/2 and 1/2")
    return int(found[1]), int(found[2])


def _check_folder(workdir: pathlib.Path, report_only: bool) -> None:
    if (workdir / "config.json").is_file():
        raise InputError(f"workdir {workdir} is the folder of a run: name another --workdir for the study")
    if report_only and not (workdir / "study.json").is_file():
        raise InputError(f"workdir {workdir} holds no study to report on")


def _save(study: Study) -> None:
    try:
        study.workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(study.workdir / "study.json", dataclasses.asdict(study.config))
    except OSError as e:
        raise InputError(f"workdir {study.workdir} cannot be written ({e.strerror}): name another --workdir") from None


def _report(study: Study, say: Callable[[str], None]) -> None:

    data = study_data(study)
    write_study_report(study.workdir / "report", data)
    say("\n" + format_study(data))
    say(f"report: {study.workdir / 'report' / 'study.html'}")
