"""The `selftrain` command as a process that computes to the last bit what the process of the tests does, and that waits
at a moment that the environment names, so that no signal has to be in time.

It has as many devices as the tests, since that is how many threads XLA gives a matrix product, and uses one of them; in
a job, which shares a mesh, it has one and uses it.

SELFTRAIN_HELD=[PATTERN, COUNT, MARK] in JSON: before the COUNT-th file or folder whose path matches PATTERN gets its
final name, the thread that does it makes the file MARK, and waits until somebody removes that."""

import json
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import time

import jax


def use_one_device():
    for name in ("devices", "local_devices"):
        setattr(jax, name, lambda *arguments, all_of=getattr(jax, name): all_of(*arguments)[:1])
    jax.device_count = lambda *_: 1


def wait_before(pattern, count, mark):
    pattern, mark, left = re.compile(pattern), pathlib.Path(mark), iter(range(count - 1, -1, -1))
    parent, lock = os.getppid(), threading.Lock()

    def hold(event, arguments):
        if event != "os.rename" or not pattern.search(str(arguments[1])):
            return
        with lock:
            reached = next(left, None) == 0
        if reached:
            mark.touch()
        while reached and mark.exists():
            time.sleep(0.01)
            if os.getppid() != parent:
                os._exit(1)

    sys.addaudithook(hold)


if "JAX_NUM_PROCESSES" not in os.environ:
    use_one_device()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
if "SELFTRAIN_HELD" in os.environ:
    wait_before(*json.loads(os.environ["SELFTRAIN_HELD"]))
runpy.run_module("selftrain_jax", run_name="__main__", alter_sys=True)
