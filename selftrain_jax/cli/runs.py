"""The sub-commands of `selftrain` that take a config: the stages of a run, its state, and a study."""

import argparse
import contextlib
import dataclasses
import pathlib
import shlex
import sys
from typing import Sequence

from selftrain_jax import __version__
from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError, visible
from selftrain_jax.core.files import fingerprint
from selftrain_jax.core.storage import Workdir
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.distributed import job, preemption
from selftrain_jax.distributed.mesh import configure_jax, describe, find_devices
from selftrain_jax.run import stages
from selftrain_jax.run.pipeline import Pipeline, save_config
from selftrain_jax.study.execute import run_study
from selftrain_jax.training.log import check_wandb


def run(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain run`, or one of the stages."""
    wanted = arguments.command
    pipeline = _pipeline(arguments, overrides, argv)
    plan = pipeline.stages()
    check_wandb(pipeline.wandb)
    configure_jax()
    job.initialize()
    find_devices()

    def is_wanted(stage: str) -> bool:
        return wanted in ("run", stage.split("/")[0])

    asked = fingerprint([wanted, __version__, dataclasses.asdict(pipeline.config), str(pipeline.home)])
    if not job.same_on_all(asked):
        raise InputError("the processes of this job have different settings, workdirs or versions: start them alike")

    def hold_check_and_save():
        holding.enter_context(pipeline.place.held())
        stages.check(pipeline.home, plan)  # settings first: they are what people change
        pipeline.check_files()
        pipeline.check_lengths()
        stages.check(pipeline.home, plan, is_wanted)
        save_config(pipeline.home, pipeline.config)

    with contextlib.ExitStack() as holding:
        job.on_first("check of files and settings", hold_check_and_save)
        first = job.is_first()
        if first:
            mesh = pipeline.mesh if wanted in ("run", "lab", "sample", "train", "evaluate") else None
            print(f"selftrain: {describe(mesh, pipeline.home)}", file=sys.stderr)
        stages.run(pipeline.place, plan, is_wanted, _say)
        if wanted == "sample" and arguments.show and first:
            pipeline.place.fetch(f"sample/{pipeline.main}")
            _show_documents(pipeline.corpus_path(pipeline.main), arguments.show)
        if wanted in ("run", "report") and first:
            report = pipeline.home / "report"
            print("\n" + (report / "table.txt").read_text("utf-8"))
            print(f"report: {report / 'report.html'}")
    return 0


def status(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain status`: what is done, started and waiting."""
    pipeline = _pipeline(arguments, overrides, argv)
    plan = pipeline.stages()
    stages.check(pipeline.home, plan)
    stale = stages.stale(pipeline.home, plan, models=False)
    for stage in plan:
        state = "stale" if stage.name in stale else stages.state(pipeline.home, stage)
        far = stale[stage.name].why if state == "stale" else ""
        if state == "started":
            far = stage.progress(pipeline.home / stage.name)
        _say(f"{state:8} {stage.name}{far and f': {far}'}")
    return 0


def study(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain study`."""
    config = load_config(arguments.config, overrides, study=True)
    preemption.joined()  # it takes no others
    # What repeats the study, whoever writes its page.
    command = ["selftrain", "study", f"--config={arguments.config}", f"--workdir={arguments.workdir}", *overrides]
    run_study(config, arguments.workdir, shlex.join(command), arguments.shard, arguments.report, _say)
    return 0


def _pipeline(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> Pipeline:
    config = load_config(arguments.config, overrides)
    command = "selftrain " + shlex.join(argv)
    watched = {name: vars(arguments)[name] for name in ("wandb", "profile") if name in arguments}
    return Pipeline(config, Workdir(arguments.workdir), command, **watched)


def _show_documents(corpus: pathlib.Path, count: int) -> None:
    for document in read_corpus(corpus)[:count]:
        _say(f"\n--- document {document.id} ({len(document.tokens)} tokens, {document.stop_reason}) ---")
        _say(document.text)


def _say(text: str) -> None:
    print(visible(text, keep="\n\t"), flush=True)
