"""What is told while work goes on: bars on a terminal, dated lines elsewhere and in a folder's `log.txt`."""

import contextlib
import datetime
import os
import pathlib
import sys
from typing import Any, Iterator

from selftrain_jax.core.errors import told
from selftrain_jax.core.files import is_remote

LOG = "log.txt"
LINE_EVERY = 60
"""Seconds between two lines of a bar that is no terminal's."""

_logs: list[Any] = []


@contextlib.contextmanager
def kept_in(path: pathlib.PurePath) -> Iterator[None]:
    """Within the body, `note` appends to the file `path`, on disk or in a bucket. A log that cannot be written ends no
    work; a link is not followed."""
    _logs.append(path)
    try:
        yield
        note("done")
    except BaseException as e:
        note(f"ended: {e or type(e).__name__}")
        raise
    finally:
        _logs.remove(path)


def note(text: object) -> None:
    """Appends `text` to the log, if one is kept, as one line with date and time (UTC)."""
    words = " ".join(told(text, keep="\n\t").split())
    line = f"{_now()} {words}\n"
    for path in _logs:
        with contextlib.suppress(OSError):
            if is_remote(path):  # objects are written whole
                path.write_text((path.read_text("utf-8") if path.exists() else "") + line, "utf-8")
                continue
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            with open(file, "w", encoding="utf-8") as log:
                log.write(line)


def bar(**arguments: Any):
    """`tqdm(**arguments)` on standard error: on a terminal a bar, elsewhere a dated line a minute, without carriage
    returns."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(**{"dynamic_ncols": True} | arguments)
    plain = {"file": _Lines(), "mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "delay": 1e-9}  # no line of 0
    known = arguments.get("total") is not None or hasattr(arguments.get("iterable"), "__len__")
    of, left = (" of {total_fmt}", ", {remaining} left") if known else ("", "")
    plain["bar_format"] = f"{{desc}}: {{n_fmt}}{of} {{unit}}, {{elapsed}} taken{left}{{postfix}}"
    return tqdm(**arguments | plain)


class _Lines:
    """A stream that makes a dated line of each state of a bar."""

    def write(self, text: str) -> None:
        if state := text.strip():
            print(f"{_now()} {told(state)}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def duration(seconds: float | None) -> str:
    """ "1 h 5 min", "2 min 3 s", "4.2 s"; "-" for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
