"""The sub-commands of `selftrain` that take a config: the stages of a run, its state, and a study."""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import shlex
import sys
import time
import warnings
from typing import Iterator, Mapping, Sequence

from selftrain_jax import __version__
from selftrain_jax.cli.config import KEPT, load_config, reference_of
from selftrain_jax.cli.hours import time_left
from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError, InputWarning, visible
from selftrain_jax.core.files import check_no_pattern, fingerprint
from selftrain_jax.core.lock import in_use
from selftrain_jax.core.storage import Workdir
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.distributed import job, preemption
from selftrain_jax.distributed.mesh import configure_jax, describe, find_devices
from selftrain_jax.report import memory
from selftrain_jax.report.tables import format_table, terminal_columns
from selftrain_jax.run import stages
from selftrain_jax.run.pipeline import Pipeline, save_config
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.study.execute import run_study
from selftrain_jax.study.expand import Study
from selftrain_jax.study.failures import Failures
from selftrain_jax.study.settings import StudyConfig
from selftrain_jax.training.log import check_wandb

WATCH_SECONDS = 2.0


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

    asked = fingerprint([wanted, __version__, dataclasses.asdict(pipeline.config), str(pipeline.home)])
    if not job.same_on_all(asked):
        raise InputError("the processes of this job have different settings, workdirs or versions: start them alike")

    was: list[RunConfig] = []

    def hold_check_and_save():
        holding.enter_context(pipeline.place.held())
        if not redo:
            stages.check(pipeline.home, plan)  # settings first: they are what people change
        pipeline.check_files()
        pipeline.check_lengths()
        trained = [stage for stage in plan if stage.name.startswith("train/")]
        if is_wanted("train") and any(stages.state(pipeline.home, stage) != "done" for stage in trained):
            pipeline.check_attention()
            check_no_pattern(pipeline.home)
        for name in reversed(stages.outdated(pipeline.home, plan)) if redo else ():
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
        outgrown = _outgrown(pipeline.home, stages.stale(pipeline.home, plan, models=False)) if first else ()

        def say(line: str) -> None:
            _say(line)
            if ": " not in line and (left := time_left(todo, outgrown)):  # a stage begins
                print(f"selftrain: {left}", file=sys.stderr, flush=True)
                progress.note(left)

        try:
            stages.run(pipeline.place, plan, is_wanted, say)
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


def _outgrown(home: pathlib.Path, stale: Mapping[str, stages.Stale]) -> list[str]:
    """Fingerprints of the `stale` stages that are done, but were made from less than is asked for now."""
    names = [name for name, why in stale.items() if why.outgrown and stages.manifest_path(home, name).is_file()]
    return [stages.read_manifest(home, name)["fingerprint"] for name in names]


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


def status(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain status`: what is done, started and waiting, of a run or a study."""
    reference = reference_of(arguments, KEPT["study"])
    config = load_config(reference, overrides, study=None)
    if isinstance(config, StudyConfig):
        study = Study(config, arguments.workdir)
        lines, locks = functools.partial(_unit_lines, study), lambda: study.workdir.glob(".shard-*.lock")
    else:
        pipeline = _pipeline_of(config, reference, arguments, argv)
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
            _say("nobody is at work in the folder")
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
    if left := time_left([(pipeline.home, stage) for stage in plan], _outgrown(pipeline.home, stale)):
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
    return _pipeline_of(load_config(reference, overrides), reference, arguments, argv)


def _pipeline_of(config: RunConfig, reference: str, arguments: argparse.Namespace, argv: Sequence[str]) -> Pipeline:
    command = "selftrain " + shlex.join(argv)
    if arguments.config is None:  # the folder's settings are what repeats it
        command = shlex.join(["selftrain", "run", f"--config={reference}", "--workdir=NEW"])
    watched = {name: vars(arguments)[name] for name in ("wandb", "profile") if name in arguments}
    return Pipeline(config, Workdir(arguments.workdir), command, **watched)


def _show_documents(corpus: pathlib.Path, count: int) -> None:
    for document in read_corpus(corpus)[:count]:
        _say(f"\n--- document {document.id} ({len(document.tokens)} tokens, {document.stop_reason}) ---")
        _say(document.text)


def _say(text: str) -> None:
    print(visible(text, keep="\n\t"), flush=True)
    if "\n" not in text:
        progress.note(text)
