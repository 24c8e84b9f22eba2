"""The `selftrain` command: one sub-command per stage, `run` for all of them, `status` for what is done; and the tools."""

import argparse
import ast
import contextlib
import dataclasses
import errno
import os
import pathlib
import runpy
import shlex
import sys
import traceback
import warnings
from typing import Any, Iterator, Sequence

from selftrain_jax import __version__, preemption, tools
from selftrain_jax.errors import InputError, InputWarning, RunStopped, one_line
from selftrain_jax.files import fingerprint
from selftrain_jax.storage import Workdir, is_storage_error

_STAGES = {
    "lab": "generate the miniature world and pre-train its models (only configs with a lab)",
    "sample": "let the source model write documents from the BOS token alone",
    "audit": "drop documents that overlap with a benchmark",
    "subset": "draw training subsets of an exact number of tokens and pack them",
    "train": "fine-tune the student on every subset of every arm",
    "evaluate": "measure the base model and every fine-tuned one; or, with MODEL, one model on benchmark tasks",
    "report": "write report.json, report.html and the before/after table",
}
_EPILOG = """\
settings:
  --config=FILE.py[:ARGUMENT] names a Python file with get_config(); its docstring tells what it does.
  --config.a.b=VALUE changes one setting, for example --config.sample.temperature=1.0.
exit codes: 0 done, 2 bad input (one line says what and how to mend it), 143 stopped by SIGTERM, 1 anything else.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code. A process of a job that fails ends here, at once."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
    except Exception:
        if _in_job():
            traceback.print_exc()
            _leave_job(1)
        raise
    if code and _in_job():
        _leave_job(code)
    return code


def _in_job() -> bool:
    parallel = sys.modules.get("selftrain_jax.parallel")
    return parallel is not None and parallel.has_joined()


def _leave_job(code: int) -> None:
    """Ends this process. An orderly exit of JAX would wait for the others, which may go on until they miss this one."""
    from selftrain_jax import parallel

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    parallel.outlive(10)
    parallel.says_it_leaves(in_order=code == preemption.EXIT_CODE)
    os._exit(code)


def _run(argv: list[str]) -> int:
    arguments, overrides = _parser().parse_known_args(argv)
    try:
        with _one_line_warnings():
            return _dispatch(arguments, overrides, argv)
    except InputError as e:
        print(f"selftrain: error: {e}", file=sys.stderr)
        return 2
    except RunStopped as e:
        print(f"selftrain: stopped: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    except OSError as e:
        # A path that the system refuses: unreadable, too long, ...; or a full disk, which comes without a path.
        if e.filename is None and e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _bucket_failed(e, argv)
        print(f"selftrain: error: {f'{e.filename}: ' if e.filename else ''}{e.strerror}", file=sys.stderr)
        return 2
    except Exception as e:
        return _bucket_failed(e, argv)
    except KeyboardInterrupt:
        tool = arguments.command in tools.COMMANDS
        outcome = "nothing was written" if tool else "the same command goes on from here"
        print(f"selftrain: interrupted; {outcome}", file=sys.stderr)
        return 1


def _bucket_failed(error: Exception, argv: list[str]) -> int:
    """The exit code after saying that a bucket cannot be used; raises the error again if it is another."""
    if not any("gs://" in argument for argument in argv) or not is_storage_error(error):
        raise error
    print(f"selftrain: stopped: the bucket cannot be used ({one_line(error)[:300]}); try the same command again",
          file=sys.stderr)  # fmt: skip
    return 1


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Prints an `InputWarning` as the command line prints errors; other warnings as Python does."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_one_line(message, category, *rest, **named):
            if issubclass(category, InputWarning):
                print(f"selftrain: warning: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = show_one_line
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selftrain",
        description="Prompt-free unconditional self-training of language models, in JAX: a base model writes documents "
        "from the BOS token alone, a student learns from them, and capability and verbatim memorization are measured "
        "before and after.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"selftrain_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {"run": "all stages, in order; goes on where an earlier run stopped", **_STAGES,
                       "status": "what is done, started and waiting in a workdir, and how far"}.items():  # fmt: skip
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        needed = name != "evaluate"  # which takes MODEL instead; `_dispatch` sees to it
        command.add_argument("--config", required=needed, metavar="FILE.py[:ARG]", help="the run's settings")
        command.add_argument("--workdir", required=needed, metavar="DIR", help="the run's folder, on disk or gs://...")
        if name == "sample":
            command.add_argument("--show", type=int, default=0, metavar="N", help="print N documents when done")
        if name in ("run", "train"):
            command.add_argument("--wandb", default="", metavar="PROJECT", help="log training to Weights & Biases, too")
            command.add_argument("--profile", action="store_true", help="write a JAX trace of some steps of each training")
        if name == "evaluate":
            tools.add_task_options(command)
    _add_plan(commands)
    _add_study(commands)
    tools.add_commands(commands)
    return parser


def _add_plan(commands) -> None:
    text = "memory per device on a mesh, and the largest batch and wave that fit an accelerator; needs no device"
    command = commands.add_parser("plan", help=text, description=text[0].upper() + text[1:] + ".", epilog=_EPILOG,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    command.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="the run's settings")
    command.add_argument("--mesh", default="", metavar="AXES", help="for example data=1,fsdp=4,tensor=2 (default: config's)")
    command.add_argument("--accelerator", default="", metavar="NAME", help="A100-40, A100-80, H100, H200, v4, v5e, v5p, v6e")
    command.add_argument("--devices", type=int, metavar="N", help="how many (default: the product of the mesh, or 1)")


def _add_study(commands) -> None:
    text = "many runs as one experiment: students x sources with controls, proxies, verdicts and a page"
    command = commands.add_parser("study", help=text, description=text[0].upper() + text[1:] + ".", epilog=_EPILOG,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    command.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="the study's settings")
    command.add_argument("--workdir", required=True, metavar="DIR", help="the study's folder, on disk")
    command.add_argument("--shard", default="0/1", metavar="I/N", help="do every N-th unit from I = 0 ... N - 1 on, beside "
                         "the other shards in the same folder; shard 0 waits for all and writes the page")  # fmt: skip
    command.add_argument("--report", action="store_true", help="do nothing but write the page, from what is done so far")


def _dispatch(arguments: argparse.Namespace, overrides: list[str], argv: list[str]) -> int:
    if arguments.command in tools.COMMANDS:
        if overrides:
            raise InputError(f"argument {overrides[0]!r} is not understood; see selftrain {arguments.command} --help")
        return tools.COMMANDS[arguments.command](arguments)
    if arguments.command == "evaluate" and _is_benchmark(arguments, overrides):
        return tools.evaluate_tasks(arguments)
    looks = arguments.command in ("plan", "status")  # and leaves nothing to go on with
    with contextlib.nullcontext() if looks else preemption.watching():
        return _dispatch_run(arguments, overrides, argv)


def _dispatch_run(arguments: argparse.Namespace, overrides: list[str], argv: list[str]) -> int:
    """The commands that take a config."""
    if arguments.command == "study":
        from selftrain_jax.study.command import run_study

        config = load_config(arguments.config, overrides, study=True)
        preemption.joined()  # it takes no others
        # What repeats the study, whoever writes its page.
        argv = ["study", f"--config={arguments.config}", f"--workdir={arguments.workdir}", *overrides]
        return run_study(config, arguments.workdir, "selftrain " + shlex.join(argv), arguments.shard, arguments.report, _say)
    config = load_config(arguments.config, overrides)
    if arguments.command == "plan":
        from selftrain_jax.plan import plan_run

        print(plan_run(config, arguments.mesh, arguments.accelerator, arguments.devices))
        return 0
    from selftrain_jax import parallel, stages
    from selftrain_jax.pipeline import Pipeline, save_config
    from selftrain_jax.training.log import check_wandb

    command = "selftrain " + shlex.join(argv)
    watched = {name: vars(arguments)[name] for name in ("wandb", "profile") if name in arguments}
    pipeline = Pipeline(config, Workdir(arguments.workdir), command, **watched)
    plan = pipeline.stages()
    if arguments.command == "status":
        stages.check(pipeline.home, plan)
        stale = stages.stale(pipeline.home, plan)
        for stage in plan:
            state = "stale" if stage.name in stale else stages.state(pipeline.home, stage)
            far = stages.progress(pipeline.home, stage) if state == "started" else ""
            print(f"{state:8} {stage.name}{far and f': {far}'}")
        return 0
    wanted = arguments.command
    check_wandb(pipeline.wandb)
    parallel.enable_compilation_cache()
    parallel.initialize()
    preemption.joined()
    asked = fingerprint([wanted, __version__, dataclasses.asdict(config), str(pipeline.home)])
    if not parallel.same_on_all(asked):
        raise InputError("the processes of this job have different settings, workdirs or versions: start them alike")

    def check_and_save():
        stages.check(pipeline.home, plan)
        pipeline.check_files()
        save_config(pipeline.home, config)

    parallel.on_first("check of files and settings", check_and_save)
    first = parallel.is_first()
    if first:
        mesh = pipeline.mesh if wanted in ("run", "lab", "sample", "train", "evaluate") else None
        print(f"selftrain: {parallel.describe(mesh, pipeline.home)}", file=sys.stderr)
    stages.run(pipeline.place, plan, lambda name: wanted in ("run", name.split("/")[0]), _say)
    if wanted == "sample" and arguments.show and first:
        pipeline.place.fetch(f"sample/{pipeline.main}")
        _show_documents(pipeline.corpus_path(pipeline.main), arguments.show)
    if wanted in ("run", "report") and first:
        report = pipeline.home / "report"
        print("\n" + (report / "table.txt").read_text())
        print(f"report: {report / 'report.html'}")
    return 0


def _is_benchmark(arguments: argparse.Namespace, overrides: list[str]) -> bool:
    """Whether `evaluate` was given a model and not a run; `InputError` when it was given both or neither."""
    of_run = [name for name in ("--config", "--workdir") if getattr(arguments, name[2:]) is not None]
    if arguments.model is None:
        if tasks := tools.task_options(arguments):
            raise InputError(f"{tasks[0]} needs MODEL: selftrain evaluate MODEL --tasks NAME,... --out DIR")
        if len(of_run) < 2:
            raise InputError("evaluate needs --config and --workdir (of a run), or MODEL, --tasks and --out (benchmarks)")
        return False
    if of_run or overrides:
        raise InputError(
            f"{(of_run + overrides)[0]} belongs to a run and MODEL={arguments.model!r} does not; for a model of a run, "
            "write RUN:self-0 as MODEL"
        )
    return True


def load_config(reference: str, overrides: Sequence[str] = (), study: bool = False):
    """The `RunConfig` (or, of a study, `StudyConfig`) of a config file, `FILE.py` or `FILE.py:ARGUMENT`, with
    `--config.a.b=value` overrides.

    Raises:
      InputError: the file is missing or broken, or a setting is unknown, of the wrong type or out of range.
    """
    from selftrain_jax.settings import RunConfig, build

    kind = RunConfig
    if study:
        from selftrain_jax.study.settings import StudyConfig as kind
    name, _, argument = reference.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputError(f"config file not found: {path}")
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)  # a config may build on its neighbour
    try:
        values = runpy.run_path(str(path))["get_config"](*([argument] if argument else [])).to_dict()
    except Exception as e:  # whatever the file does wrong is bad input
        where = [f"line {f.lineno}: " for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        what = f"{''.join(where[-1:])}{type(e).__name__}: {' '.join(str(e).split())}"
        raise InputError(f"config {reference}: {what}") from None
    finally:
        sys.path.remove(folder)
    for override in overrides:
        _override(values, override)
    if study != ("students" in values):
        command = "study" if not study else "run"
        raise InputError(f"config {reference} describes a {command}: use `selftrain {command} --config={reference} ...`")
    return build(kind, values)


def _override(values: dict[str, Any], override: str) -> None:
    """Applies one `--config.a.b=value`; the value is read as a Python literal, or else as a string."""
    name, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals:
        raise InputError(f"argument {override!r} is not understood; settings are changed with --config.NAME=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *groups, last = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise InputError(f"argument {override!r}: {group} is a single value, not a group of settings")
    values[last] = value


def _show_documents(corpus: pathlib.Path, count: int) -> None:
    from selftrain_jax.data.corpus import read_corpus

    for document in read_corpus(corpus)[:count]:
        print(f"\n--- document {document.id} ({len(document.tokens)} tokens, {document.stop_reason}) ---\n{document.text}")


def _say(text: str) -> None:
    print(text, flush=True)
