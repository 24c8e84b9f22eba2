"""The `selftrain` command: parsing, dispatch and exit codes. What a sub-command needs is imported when it is called."""

import argparse
import contextlib
import errno
import importlib
import io
import logging
import os
import sys
import traceback
import warnings
from typing import Callable, Iterator, Sequence, TextIO

from selftrain_jax.cli.options import STAGES, make_parser, task_options
from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError, InputWarning, RunStopped, one_line, told
from selftrain_jax.core.files import at_home
from selftrain_jax.core.imports import warn_of_versions
from selftrain_jax.core.storage import in_its_bucket, is_storage_error
from selftrain_jax.distributed import preemption

_WITH_CONFIG = {
    **dict.fromkeys(("run", *STAGES), "runs.run"),
    "status": "status.status",
    "config": "show.config",
    "plan": "plan.plan",
    "study": "runs.study",
}
"""Command -> module of this package and function, which is called with arguments, overrides and argv."""
_TOOLS = {
    "probes": "tools.make_probes",
    "import": "tools.import_texts",
    "leaks": "tools.find_leaks",
    "completion": "show.completion",
    "configs": "show.configs",
    "init": "show.init",
    "convert": "tools.convert_model",
    "export": "tools.export_model",
    "publish": "tools.publish_corpus",
    "verify": "tools.verify_model",
    "items": "tables.items",
    "metrics": "tables.metrics",
    "compare": "tables.compare",
}
"""Command -> module and function, which is called with its arguments alone."""
_LIGHT = ("status", "config", "completion", "configs", "init")
"""Commands that compute nothing."""
_ONLY_LOOKS = ("plan", "status", "config")  # and leaves nothing to go on with


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code. A process of a job that fails ends here, at once."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        os.getcwd()
    except FileNotFoundError:  # removed since; libraries that ask for it abort the process
        os.chdir(os.sep)
    with _sturdy_output(), _callers_jax():
        try:
            code = _run(argv)
        except Exception:  # it may hold anything, too
            print(told(traceback.format_exc(), keep="\n\t"), end="", file=sys.stderr, flush=True)
            code = 1
        if code and preemption.in_job():
            preemption.leave_job(code)
    return code


@contextlib.contextmanager
def _callers_jax() -> Iterator[None]:
    """Leaves the flags of JAX as who calls `main`, in a notebook for example, has set them."""
    jax = sys.modules.get("jax")
    before = dict(jax.config.values) if jax else {}
    try:
        yield
    finally:
        for name, value in before.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)


def _run(argv: list[str]) -> int:
    try:
        arguments, overrides = make_parser().parse_known_args(list(map(_with_home, argv)))
        with _one_line_warnings():
            if arguments.command not in _LIGHT:
                warn_of_versions("selftrain_jax")
            return _dispatch(arguments, overrides, argv)
    except InputError as e:
        print(f"selftrain: error: {_said(e)}", file=sys.stderr, flush=True)
        if argv[0] in ("run", *STAGES) and preemption.joining():
            _tell_job()
        return 2
    except RunStopped as e:
        print(f"selftrain: stopped: {_said(e)}", file=sys.stderr, flush=True)
        return e.exit_code
    except OSError as e:
        # A path that the system refuses: unreadable, too long, ...; or a full disk, which comes without a path.
        if e.filename is None and e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _bucket_failed(e, argv)
        where = f"{_said(e.filename)}: " if e.filename else ""
        print(f"selftrain: error: {where}{e.strerror}", file=sys.stderr)
        return 2
    except Exception as e:
        return _bucket_failed(e, argv)
    except KeyboardInterrupt:
        outcome = "nothing was written" if argv[:1] and argv[0] in _TOOLS else "the same command goes on from here"
        print(f"selftrain: interrupted; {outcome}", file=sys.stderr)
        return 1


def _said(message: object) -> str:
    return told(in_its_bucket(str(message)))


def _with_home(argument: str) -> str:
    """`argument` with the home folder for `~/` at its beginning, or after `=`, where shells leave it."""
    name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return name + equals + at_home(value)


def _tell_job() -> None:
    """Joins the others of a job, if there are any: they would wait for this process, and miss it now instead."""
    with contextlib.suppress(InputError, RuntimeError):
        importlib.import_module("selftrain_jax.distributed.job").initialize(timeout=60)


class _Sturdy:
    """A standard stream that may break, its reader gone or its disk full: the rest then goes nowhere, and ends no
    work."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._do(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, do: Callable, *arguments):
        try:
            return do(*arguments)
        except OSError as e:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if e.errno not in (errno.EPIPE, errno.EIO):  # a pipe, or a terminal, that is closed
                print(f"selftrain: warning: output cannot be written ({e.strerror}); its rest is lost", file=sys.stderr)


@contextlib.contextmanager
def _sturdy_output() -> Iterator[None]:
    """Within the body, neither a reader that is gone nor a character that the terminal lacks ends the work."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): else the next file that is opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
    with contextlib.ExitStack() as replaced:
        for redirect, stream in ((contextlib.redirect_stdout, sys.stdout), (contextlib.redirect_stderr, sys.stderr)):
            stream = stream or replaced.enter_context(open(os.devnull, "w"))  # None where it was closed
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
                replaced.callback(replaced.enter_context(redirect(_Sturdy(stream))).flush)
        yield


def _bucket_failed(error: Exception, argv: list[str]) -> int:
    """The exit code after saying that a bucket cannot be used; raises the error again if it is another."""
    if not any("gs://" in argument for argument in argv) or not is_storage_error(error):
        raise error
    print(
        f"selftrain: stopped: the bucket cannot be used ({one_line(error)[:300]}); try the same command again",
        file=sys.stderr,
    )
    return 1


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Prints an `InputWarning` as the command line prints errors, other warnings and records of logs as `told`."""
    make = logging.getLogRecordFactory()

    def make_told(*args, **named):
        record = make(*args, **named)
        with contextlib.suppress(TypeError, ValueError):  # arguments that do not fit: logging says so itself
            record.msg, record.args = told(record.getMessage(), keep="\n\t"), ()
        return record

    with warnings.catch_warnings(), contextlib.ExitStack() as changed:
        logging.setLogRecordFactory(make_told)
        changed.callback(logging.setLogRecordFactory, make)
        warnings.simplefilter("default", InputWarning)  # whatever PYTHONWARNINGS says
        show = warnings.showwarning

        def show_one_line(message, category, *rest, **named):
            if issubclass(category, InputWarning):
                print(f"selftrain: warning: {_said(message)}", file=sys.stderr)
                progress.note(f"warning: {in_its_bucket(str(message))}")
            else:
                show(told(message, keep="\n\t"), category, *rest, **named)

        warnings.showwarning = show_one_line
        yield


def _dispatch(arguments: argparse.Namespace, overrides: list[str], argv: list[str]) -> int:
    command = arguments.command
    if command in _TOOLS:
        if overrides:
            raise InputError(f"argument {overrides[0]!r} is not understood; see selftrain {command} --help")
        return _find(_TOOLS[command])(arguments)
    if command == "evaluate" and _is_benchmark(arguments, overrides):
        with preemption.watching():
            preemption.joined()  # it takes no others
            return _find("benchmarks.evaluate_tasks")(arguments)
    with contextlib.nullcontext() if command in _ONLY_LOOKS else preemption.watching():
        return _find(_WITH_CONFIG[command])(arguments, overrides, argv)


def _find(where: str) -> Callable[..., int]:
    module, function = where.split(".")
    return getattr(importlib.import_module(f"selftrain_jax.cli.{module}"), function)


def _is_benchmark(arguments: argparse.Namespace, overrides: list[str]) -> bool:
    """Whether `evaluate` was given a model and not a run; `InputError` when it was given both or neither."""
    of_run = [name for name in ("--config", "--workdir") if getattr(arguments, name[2:]) is not None]
    if arguments.model is None:
        if tasks := task_options(arguments):
            raise InputError(f"{tasks[0]} needs MODEL: selftrain evaluate MODEL --tasks NAME,... --out DIR")
        if arguments.workdir is None:
            raise InputError("evaluate needs --workdir (of a run), or MODEL, --tasks and --out (benchmarks)")
        return False
    if of_run or overrides:
        raise InputError(
            f"{(of_run + overrides)[0]} belongs to a run and MODEL={arguments.model!r} does not; for a model of a run, "
            "write RUN:self-0 as MODEL"
        )
    return True
