"""Waiting for what another process or thread does, as long as it takes."""

import subprocess
import time
from typing import Callable

HANGS = 600
"""Seconds after which what should happen is taken to hang; far more than any machine needs."""


def wait_until(there: Callable[[], bool], *processes: subprocess.Popen) -> None:
    """Returns when `there()`; fails when it hangs, and when one of the processes that should do it has ended."""
    until = time.monotonic() + HANGS
    while not there():
        ended = [process for process in processes if process.poll() is not None]
        if (ended or time.monotonic() > until) and not there():
            for process in processes:
                process.kill()
            told = [(process.communicate()[1] or "")[-3000:] for process in processes]
            raise AssertionError("\n".join(["ended too early" if ended else "hangs", *told]))
        time.sleep(0.01)
