"""Two at work in one folder: the second is told at once; what a crash left behind stops nobody."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from selftrain_jax.core import lock
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import as_path

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(params=["disk", "bucket"])
def path(request, tmp_path):
    """Of a lock, whose folder is there."""
    if request.param == "disk":
        return tmp_path / ".lock"
    return as_path(f"{request.getfixturevalue('bucket')}/.lock")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "GONE_AFTER", 0.01)


def left_behind(path, **changes):
    """A lock whose holder, this process but for `changes`, went without a word."""
    left = lock._acquire(str(path), "folder x is in use")
    path.write_text(json.dumps(left.holder | changes))


def test_the_second_is_refused_with_who_is_there_and_the_way_out(path):
    with lock.held(path, "folder x is in use"):
        held = path.read_text()
        with pytest.raises(
            InputError, match=rf"folder x is in use by process {os.getpid()} on .* since 20.*wait for it.*{path}"
        ):
            with lock.held(path, "folder x is in use"):
                pass
        assert path.read_text() == held
    assert not path.exists()


def test_it_is_released_when_the_work_fails_and_when_the_process_ends_at_once(path):
    with pytest.raises(KeyError), lock.held(path, "x"):
        raise KeyError
    assert not path.exists()
    left_behind(path)
    lock._held.append(lock._acquire.__globals__["_Object" if "://" in str(path) else "_File"](str(path)))
    lock._held[-1].holder = json.loads(path.read_text())
    lock.release_all()
    lock._held.clear()
    assert not path.exists()


def test_what_a_killed_process_left_is_taken_over_at_once(tmp_path):
    path = tmp_path / ".lock"
    script = f"import os; from selftrain_jax.core import lock; lock._acquire({str(path)!r}, 'x'); os._exit(9)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert path.exists()
    with lock.held(path, "x"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "changes",
    [{"pid": 2**22 + 1}, {"ticks": "1"}, {"pid": 10**30}],
    ids=["no such process", "its number was given again", "no number of a process"],
)
def test_a_process_that_is_gone_holds_nothing(path, changes):
    left_behind(path, **changes)
    with lock.held(path, "x"):
        pass


def test_a_process_of_which_the_machine_tells_nothing_lives(tmp_path, monkeypatch):
    """As on clusters that hide other users' processes (`hidepid`)."""
    left_behind(tmp_path / ".lock", pid=1)
    monkeypatch.setattr(lock, "_started", lambda pid: "")
    with pytest.raises(InputError, match="by process 1"), lock.held(tmp_path / ".lock", "x is in use"):
        pass


def test_of_another_machine_only_one_that_shows_no_sign_of_life_is_gone(path, monkeypatch):
    left_behind(path, machine=["elsewhere"], host="elsewhere", pid=1)
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    with pytest.warns(InputWarning, match="in use by process 1 on elsewhere"), lock.held(path, "x is in use"):
        assert json.loads(path.read_text())["pid"] == os.getpid()

    left_behind(path, machine=["elsewhere"], host="elsewhere", pid=1)
    other = (lock._Object if "://" in str(path) else lock._File)(str(path))
    other.payload = path.read_text().encode()
    monkeypatch.setattr(lock, "GONE_AFTER", 600)
    monkeypatch.setattr(lock.time, "sleep", lambda _: other.touch())  # it is renewed while we look
    with pytest.raises(InputError, match="by process 1 on elsewhere"), lock.held(path, "x is in use"):
        pass


def test_of_many_that_want_it_one_has_it(tmp_path):
    path, got, tried = tmp_path / ".lock", [], threading.Barrier(8)
    left_behind(path, pid=2**22 + 1)

    def take():
        tried.wait()
        try:
            got.append(lock._acquire(str(path), "x"))
        except InputError:
            pass

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and json.loads(path.read_text())["token"] == got[0].holder["token"]


def test_one_that_stood_still_notices_that_another_has_taken_over(path):
    mine = lock._acquire(str(path), "x")
    assert mine.renew()
    path.unlink()
    assert mine.renew() and path.exists()  # made again
    path.write_text(json.dumps(mine.holder | {"token": "another"}))
    assert not mine.renew()
    mine.release()
    assert path.exists()  # it is the other's


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_lock_is_neither_followed_nor_waited_for(tmp_path, kind):
    path, target = tmp_path / ".lock", tmp_path / "target"
    target.write_text("precious")
    path.symlink_to(target) if kind == "link" else os.mkfifo(path)
    with pytest.raises(InputError, match="remove it"), lock.held(path, "x"):
        pass
    assert target.read_text() == "precious"
