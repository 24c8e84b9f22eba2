"""The `selftrain` command, which waits at a moment that the environment names, so that no signal has to be in time.

SELFTRAIN_HELD=[PATTERN, COUNT, MARK] in JSON: before the COUNT-th file or folder whose path matches PATTERN gets its final
name, the thread that does it makes the file MARK, and waits until somebody removes that.
"""

import json
import os
import pathlib
import re
import runpy
import sys
import threading
import time

pattern, count, mark = json.loads(os.environ["SELFTRAIN_HELD"])
pattern, mark = re.compile(pattern), pathlib.Path(mark)
parent, lock = os.getppid(), threading.Lock()


def hold(event, arguments):
    global count
    if event != "os.rename" or not pattern.search(str(arguments[1])):
        return
    with lock:
        count -= 1
        reached = count == 0
    if reached:
        mark.touch()
    while reached and mark.exists():
        time.sleep(0.01)
        if os.getppid() != parent:
            os._exit(1)


sys.addaudithook(hold)
sys.argv[0] = "selftrain"
runpy.run_module("selftrain_jax", run_name="__main__", alter_sys=True)
