"""SIGTERM, and the notice of a cloud, end a command with one line and exit code 143; a training saves first."""

import array
import concurrent.futures
import contextlib
import fcntl
import http.server
import os
import pathlib
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from selftrain_jax.distributed import preemption
from tests.waiting import HANGS, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys, time
from selftrain_jax.distributed import preemption
preemption.PATIENCE, preemption.POLL = 1, 0.05
print("left in the buffer", end="")
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it

def work(end=""):
    os.write(2, b"ready\\n")  # at once: a thread of `body` may write, too
    sys.stdin.readline()
    print(end, end="")

with preemption.watching():
    preemption.begins("the test")
    {start}
    {body}
"""


@contextlib.contextmanager
def command(body="work()", start="preemption.joined()", **environment):
    """A process in the middle of `body`; its work goes on until it is told a line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    script = [sys.executable, "-c", SCRIPT.format(body=body, start=start)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(script, text=True, env=environment, **pipes)
    try:
        assert process.stderr.readline().endswith("ready\n")
        yield process
    finally:
        process.kill()
        process.communicate()


def ends(process):
    """(exit code, standard output, lines of standard error)."""
    process.stdin.flush()
    stdin, process.stdin = process.stdin, None  # `communicate` would close it, which tells a line, too
    out, err = process.communicate(timeout=HANGS)
    stdin.close()
    return process.returncode, out, [line for line in err.splitlines() if line]


STOPPED = "selftrain: stopped: SIGTERM came during the test; the same command goes on from what is saved"


def test_sigterm_ends_a_command_with_one_line_and_loses_no_output():
    with command() as process:
        process.terminate()
        assert ends(process) == (143, "left in the buffer", [STOPPED])


@pytest.mark.parametrize("body", ["work()", "with preemption.during('training'): work()"])
def test_an_interrupt_ends_a_command_without_an_exception_in_the_middle_of_its_work(body):
    with command(body) as process:
        process.send_signal(signal.SIGINT)
        said = ["selftrain: interrupted; the same command goes on from here"]
        assert ends(process) == (1, "left in the buffer", said)


def test_a_training_that_comes_to_no_end_of_a_step_is_not_waited_for():
    with command("with preemption.during('training'): work()") as process:
        process.terminate()
        code, _, (line,) = ends(process)
    assert code == 143 and "during the test, which came to no end of a step within 1 s; the same command" in line


def goes_on(process):
    process.stdin.write("\n")


def test_while_a_checkpoint_is_written_it_waits():
    with command("with preemption.during('training'), preemption.during('saving'): work(' and after')") as process:
        process.terminate()
        waits = "selftrain: SIGTERM came; waiting for the checkpoint that is being written"
        assert [process.stderr.readline() for _ in range(2)] == ["\n", f"{waits}\n"]  # after its patience
        goes_on(process)
        assert ends(process) == (143, "left in the buffer and after", [STOPPED])


def test_before_the_others_can_be_told_it_waits():
    joining = "work(' and after'); preemption.joined(); sys.stdin.readline()"
    with command(joining, "preemption.PATIENCE = 600") as process:
        process.terminate()
        goes_on(process)
        assert ends(process) == (143, "left in the buffer and after", [STOPPED])


def test_nobody_needs_to_read_the_line():
    """Neither stdout nor stderr; a pipe holds 64 KiB."""
    fills = "import os, threading; threading.Thread(target=fill, daemon=True).start(); work()"
    with command(f"fill = lambda: [os.write(2, b'x' * 4096) for _ in iter(int, 1)]; {fills}") as process:
        in_pipe = array.array("i", [0])
        wait_until(lambda: fcntl.ioctl(process.stderr, termios.FIONREAD, in_pipe) == 0 and in_pipe[0] > 60_000)
        process.terminate()
        assert process.wait(timeout=HANGS) == 143


def test_a_training_that_stops_by_itself_is_left_alone_by_a_second_signal():
    body = "with preemption.during('training'): preemption.stop_by_itself(); work(); sys.exit(7)"
    with command(body) as process:
        process.terminate()
        time.sleep(0.2)  # else the two may come as one
        process.terminate()
        goes_on(process)
        assert ends(process) == (7, "left in the buffer", [])


def test_a_training_hears_of_the_signal_though_only_the_job_noticed_it():
    """In a job, even of one process, the signal goes to JAX's handler, not to Python's."""
    body = """
    class Told(preemption.Alone):
        in_job = True
        def told_to_stop(self):
            return True
    os.write(2, b"ready\\n")  # at once: a thread of `body` may write, too
    with preemption.during('training'), preemption.noticing_sigterm() as came:
        preemption.joined(Told())
        while not came():
            time.sleep(0.05)
        preemption.stop_by_itself()
    sys.exit(7)
"""
    with command(body) as process:
        assert ends(process) == (7, "left in the buffer", [])


def test_outside_a_command_signals_are_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watching():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def elsewhere():
            with preemption.watching(), preemption.during("training"):
                preemption.begins("a thread")
                return signal.getsignal(signal.SIGTERM)

        assert pool.submit(elsewhere).result() == before


@pytest.fixture
def metadata():
    """(address, values, answers) of a server as Google's clouds have it; a value that is missing is "not found"."""
    values = {"maintenance-event": "NONE", "preempted": "FALSE"}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = self.headers["Metadata-Flavor"] == "Google" and name in values
            value = values.get(name, "")
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(value.encode())
            asked.append((name, value))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}", values, asked
    server.shutdown()
    server.server_close()


def wait_for_answers(asked, answer, count):
    """Returns when the server has given `answer`, a name and its value, `count` times."""
    wait_until(lambda: asked.count(answer) >= count)


@pytest.mark.parametrize(
    "name, notice", [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")]
)
def test_a_notice_of_the_cloud_is_as_good_as_sigterm(metadata, name, notice):
    address, values, asked = metadata
    values["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"  # stops nothing
    with command(GCE_METADATA_HOST=address) as process:
        for value in ("MIGRATE_ON_HOST_MAINTENANCE", "NONE"):
            values["maintenance-event"] = value
            wait_for_answers(asked, ("maintenance-event", value), 3)
        assert process.poll() is None
        values[name] = notice
        told = f"selftrain: the metadata server says {name}: {notice}"
        assert ends(process) == (143, "left in the buffer", [told, STOPPED])


def test_a_notice_that_was_there_before_stops_nothing(metadata):
    address, values, asked = metadata
    del values["preempted"]
    values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    with command(GCE_METADATA_HOST=address) as process:
        wait_for_answers(asked, ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), 3)
        assert process.poll() is None


def test_elsewhere_nobody_is_asked(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    assert preemption._metadata_host() == ""
