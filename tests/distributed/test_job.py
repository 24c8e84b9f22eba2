"""Where the processes of a job listen, asked by connecting as a stranger would."""

import pathlib
import socket
import subprocess
import sys

from tests.waiting import HANGS

JOB = """
import sys
from selftrain_jax.distributed import job
job.initialize(sys.argv[1], 1, 0)
print(job.Peers()._said("listens")["0"], flush=True)
sys.stdin.read()
"""


def kept(address, port):
    """`address:port`, nobody listening, which only who shares it as the coordinator does can take meanwhile."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    taken.bind((address, port))
    return taken


def answers(address, port):
    try:
        socket.create_connection((address, port), timeout=HANGS).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_job_answers_on_its_own_interface_alone(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    own, other = "127.0.0.1", "127.0.0.2"
    with kept(own, 0) as socket_of_job, kept(other, port := socket_of_job.getsockname()[1]):
        command = [sys.executable, "-c", JOB, f"{own}:{port}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            peer = int(process.stdout.readline().split(":")[1])
            reached = {(a, p): answers(a, p) for a in (own, other) for p in (port, peer)}
            process.stdin.close()
    assert process.returncode == 0
    assert reached == {(own, port): True, (own, peer): True, (other, port): False, (other, peer): False}
