import logging
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.cli import runs
from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputWarning
from selftrain_jax.data.records import Document
from selftrain_jax.run import stages
from tests.cli.command import ROOT, TINY, run


def test_an_interrupt_exits_with_1_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "check", interrupted)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 1
    assert capsys.readouterr().err == "selftrain: interrupted; the same command goes on from here\n"


def test_an_interrupted_tool_says_that_nothing_was_written(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("selftrain_jax.cli.tools.convert", interrupted)
    assert run("convert", tmp_path, tmp_path / "out") == 1
    assert capsys.readouterr().err == "selftrain: interrupted; nothing was written\n"


def test_nothing_that_is_told_reaches_the_terminal_as_an_order(tmp_path, monkeypatch, capsys, caplog):
    escape = "\x1b]0;owned\x07\x9b2J\r"
    assert run("status", f"--config={tmp_path}/{escape}", f"--workdir={tmp_path}") == 2
    with pytest.warns(UserWarning, match="^\ufffd"), cli._one_line_warnings():
        warnings.warn(InputWarning(escape), stacklevel=1)
        warnings.warn(UserWarning(escape), stacklevel=1)
        logging.getLogger("a library").warning("%s and %s", escape, "http://me:secret@host/")
    document = Document(0, np.zeros(3, np.int32), None, f"eos{escape}\u202e", "one\n\ttwo" + escape + "\ud800")
    monkeypatch.setattr(runs, "read_corpus", lambda _: [document])
    runs._show_documents(tmp_path, 1)
    out, err = capsys.readouterr()
    assert "one\n\ttwo\ufffd]0;owned" in out and err.count("]0;owned\ufffd") == 2
    assert all(c.isprintable() or c in "\n\t" for c in out + err + caplog.text)
    assert "http://***@host/" in caplog.text


def test_a_path_that_the_system_refuses_exits_with_2_and_one_line(tmp_path, capsys):
    name = "a" * 300
    for argv in (
        ["status", f"--config={TINY}", f"--workdir={tmp_path / name}"],
        ["export", tmp_path / name, tmp_path / "x"],
        ["status", f"--config={tmp_path / name}", f"--workdir={tmp_path}"],
    ):
        assert run(*argv) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"selftrain: error: {tmp_path / name}") and err.endswith("File name too long\n"), err


def test_an_error_of_the_system_that_names_no_path_is_not_bad_input(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ConnectionError(104, "Connection reset by \x1b http://me:secret@host/")

    monkeypatch.setattr(stages, "check", broken)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("reset by \ufffd http://***@host/\n")


@pytest.fixture
def unread():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        yield stream


@pytest.mark.parametrize("streams", [["stdout"], ["stderr"], ["stdout", "stderr"]], ids=str)
def test_output_that_nobody_reads_ends_no_work(tmp_path, monkeypatch, unread, streams):
    done = []

    def work(*_, **__):
        for text in ("a", "b\n" * 100_000, "c"):
            print(text, flush=True)
            print(text, file=sys.stderr, flush=True)
        warnings.warn("w", InputWarning, stacklevel=1)
        done.append(True)
        return {}

    for stream in streams:
        monkeypatch.setattr(sys, stream, unread)
    monkeypatch.setattr(stages, "stale", work)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0 and done


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_was_closed_ends_no_work(tmp_path, monkeypatch, closed):
    """As `2>&-` leaves it; work whose length is shown asks whether that is a terminal."""
    done = []
    monkeypatch.setattr(sys, closed, None)
    monkeypatch.setattr(stages, "stale", lambda *_, **__: done.extend(progress.bar(iterable=[1])) or {})
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0 and done


@pytest.mark.parametrize("closing", ["| head -0", "2>&- >&-"])
def test_the_command_ends_quietly_when_its_reader_does(tmp_path, closing):
    arguments = f"status --config={TINY} --workdir={tmp_path} {closing}; echo ${{PIPESTATUS[0]}} >&3"
    script = f"exec 3>&1; {sys.executable} -m selftrain_jax {arguments}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.stdout == "0\n"


def test_a_full_disk_under_the_output_is_told_and_ends_no_work(tmp_path, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert "selftrain: warning: output cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_warning_of_ours_is_a_line_whatever_the_environment_says(tmp_path, monkeypatch, capsys):
    def warns(*_, **__):
        warnings.warn("careful", InputWarning, stacklevel=1)
        return {}

    monkeypatch.setattr(stages, "stale", warns)
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
            assert capsys.readouterr().err == "selftrain: warning: careful\n"


def test_what_a_terminal_cannot_show_ends_no_work(tmp_path, monkeypatch):
    with open(tmp_path / "ascii", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        found = {"lab/world": stages.Stale("\u00e9")}
        monkeypatch.setattr(stages, "stale", lambda *_, **__: found)
        assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert "stale    lab/world: \\xe9\n" in (tmp_path / "ascii").read_text()


@pytest.mark.parametrize("command", ["convert", "export", "verify"])
def test_a_command_without_a_device_says_so_first(monkeypatch, capsys, tmp_path, command):
    def devices():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    assert run(command, str(tmp_path), *[str(tmp_path / "out")] * (command != "verify")) == 2
    assert capsys.readouterr().err.startswith("selftrain: error: JAX finds no device with JAX_PLATFORMS=cpu")


def test_a_working_directory_that_is_gone_is_left(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path / 'run'}") == 0
    assert os.getcwd() == "/"
