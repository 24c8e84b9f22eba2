"""The sub-commands of `selftrain` that take a config: the stages of a run, its state, and a study."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
import warnings
from typing import Sequence

from selftrain_jax.cli.config import load_config, reference_of
from selftrain_jax.cli.status import outgrown, pipeline_of, time_left
from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError, InputWarning, visible
from selftrain_jax.core.files import check_no_pattern, fingerprint
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.distributed import job, preemption
from selftrain_jax.distributed.mesh import configure_jax, describe, find_devices
from selftrain_jax.report import memory
from selftrain_jax.report.tables import format_table, terminal_columns
from selftrain_jax.run import checks, execute, facts, stages
from selftrain_jax.run.pipeline import Pipeline, save_config
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.study.execute import run_study
from selftrain_jax.training.log import check_wandb


def run(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain run`, or one of the stages."""
    wanted = arguments.command
    pipeline = _pipeline(arguments, overrides, argv)
    plan = pipeline.stages()
    redo = wanted == "run" and arguments.redo
    if wanted == "run" and arguments.dry_run:
        _say_plan(pipeline, plan)
        return 0
    check_wandb(pipeline.wandb)
    configure_jax()
    job.initialize()
    find_devices()

    def is_wanted(stage: str) -> bool:
        return wanted in ("run", stage.split("/")[0])

    libraries = facts.software() | {"python": ""}  # whose own version changes no number
    asked = fingerprint([wanted, libraries, dataclasses.asdict(pipeline.config), str(pipeline.home)])
    if not job.same_on_all(asked):
        raise InputError("the processes of this job have different settings, workdirs or versions: start them alike")

    was: list[RunConfig] = []

    def hold_check_and_save():
        holding.enter_context(pipeline.place.held())
        if not redo:
            stages.check(pipeline.home, plan)  # settings first: they are what people change
        checks.check_files(pipeline)
        checks.check_lengths(pipeline)
        trained = [stage for stage in plan if stage.name.startswith("train/")]
        if is_wanted("train") and any(stages.state(pipeline.home, stage) != "done" for stage in trained):
            checks.check_attention(pipeline)
            check_no_pattern(pipeline.home)
        anew = list(stages.outdated(pipeline.home, plan)) if redo else []
        if "lab/world" not in anew:
            checks.check_made(pipeline)
        for name in reversed(anew):
            pipeline.place.keep_until_redone(name)
        stages.check(pipeline.home, plan, is_wanted)
        with contextlib.suppress(InputError):  # none yet, or of another version
            was.append(load_config(os.fspath(pipeline.home / "config.json")))
        save_config(pipeline.home, pipeline.config)

    with contextlib.ExitStack() as holding:
        job.on_first("check of files and settings", hold_check_and_save)
        first = job.is_first()
        if first:
            mesh = (
                pipeline.mesh if wanted in ("run", "lab", "plant", "sample", "train", "evaluate", "recover") else None
            )
            print(f"selftrain: {describe(mesh, pipeline.home)}", file=sys.stderr)
            holding.enter_context(progress.kept_in(pipeline.home / progress.LOG))
            progress.note(f"begun: selftrain {shlex.join(argv)}")
            for sentence in pipeline.config.lacks() if wanted == "run" else ():
                warnings.warn(InputWarning(sentence), stacklevel=1)
        todo = [(pipeline.home, stage) for stage in plan if is_wanted(stage.name)]
        grown = outgrown(pipeline.home, stages.stale(pipeline.home, plan, models=False)) if first else ()

        def say(line: str) -> None:
            _say(line)
            if ": " not in line and (left := time_left(todo, grown)):  # a stage begins
                print(f"selftrain: {left}", file=sys.stderr, flush=True)
                progress.note(left)

        try:
            execute.run(pipeline.place, plan, is_wanted, say)
        except InputError:
            if was:  # on the first process
                _take_back(Pipeline(*was, pipeline.place))
            raise
        if wanted == "sample" and arguments.show and first:
            pipeline.place.fetch(f"sample/{pipeline.main}")
            _show_documents(pipeline.corpus_path(pipeline.main), arguments.show)
        if wanted == "run":
            job.on_first("end of the run", pipeline.place.redone)
        if wanted in ("run", "report") and first:
            report = pipeline.home / "report"
            found = pipeline.reported
            print("\n" + format_table(found, memory.lines(found), terminal_columns()))
            print(f"report: {report / 'report.html'}")
    return 0


def _take_back(before: Pipeline) -> None:
    """After a refusal: the settings of before, and what --redo had moved away; unless something was made meanwhile that
    is not of these settings."""
    plan, place = before.stages(), before.place
    moved = [stage for stage in plan if stages.state(place.kept, stage) != "waiting"]
    if all(stages.state(place.path, stage) == "waiting" for stage in moved):
        with contextlib.suppress(InputError):
            for folder in (place.path, place.kept):
                stages.check(folder, plan)
            for stage in moved:
                place.put_back(stage.name)
            save_config(place.path, before.config)


def _say_plan(pipeline: Pipeline, plan: Sequence[stages.Stage]) -> None:
    """What `run --redo` would do with every stage, why, and how long it took when it was done before."""
    changed, seconds = stages.outdated(pipeline.home, plan), {}
    outdated = changed | stages.outdated(pipeline.home, plan, outgrown=True)
    for stage in plan:
        state, before = stages.state(pipeline.home, stage), stages.manifest_path(pipeline.home, stage.name)
        took = stages.read_manifest(pipeline.home, stage.name)["seconds"] if before.is_file() else None
        anew = stage.name in outdated or stage.again and took is not None
        todo = "redo" if anew else {"done": "keep", "started": "go on", "waiting": "do"}[state]
        seconds.setdefault(todo, []).append(took or 0)
        why = f": {outdated[stage.name]}" if stage.name in outdated else ""
        _say(f"{todo:6} {stage.name}{why}" + (f" (took {took:,.0f} s)" if took is not None else ""))
    counts = (
        f"{len(found)} to {todo}" + f" ({sum(found):,.0f} s before)" * (todo != "do") for todo, found in seconds.items()
    )
    _say(f"{', '.join(counts)}" + "; with --redo, what is to be redone is done anew" * bool(changed))


def study(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain study`."""
    reference = reference_of(arguments)
    config = load_config(reference, overrides, study=True)
    preemption.joined()  # it takes no others
    for sentence in [] if arguments.report else config.lacks():
        warnings.warn(InputWarning(sentence), stacklevel=1)
    # What repeats the study, whoever writes its page.
    command = ["selftrain", "study", f"--config={reference}", f"--workdir={arguments.workdir}", *overrides]
    run_study(config, arguments.workdir, shlex.join(command), arguments.shard, arguments.report, arguments.redo, _say)
    return 0


def _pipeline(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> Pipeline:
    models = [argument for argument in overrides if not argument.startswith("-")]
    if models and arguments.command == "run" and arguments.config is None:
        arguments.config = f"family:{models[0]}"
        overrides = [argument for argument in overrides if argument != models[0]]
    if probes := getattr(arguments, "probes", None):
        overrides = [*overrides, f"--config.evaluate.probes={probes}"]
    reference = reference_of(arguments)
    return pipeline_of(load_config(reference, overrides), reference, arguments, argv)


def _show_documents(corpus: pathlib.Path, count: int) -> None:
    for document in read_corpus(corpus)[:count]:
        _say(f"\n--- document {document.id} ({len(document.tokens)} tokens, {document.stop_reason}) ---")
        _say(document.text)


def _say(text: str) -> None:
    print(visible(text, keep="\n\t"), flush=True)
    if "\n" not in text:
        progress.note(text)
