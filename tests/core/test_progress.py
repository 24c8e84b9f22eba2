"""Bars, dated lines and the log of a folder."""

import io
import re
import sys

import pytest

from selftrain_jax.core import progress
from selftrain_jax.core.files import as_path

DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_that_is_no_terminal_gets_dated_lines_without_carriage_returns(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(total=3, desc="train self-0", unit="step") as bar:
        for _ in range(3):
            bar.set_postfix(loss="1.5", refresh=False)
            bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert "\r" not in sys.stderr.getvalue() and len(lines) >= 3
    assert all(re.fullmatch(DATE + r"train self-0: \d of 3 step, .* taken, .* left, loss=1.5", line) for line in lines)
    assert "3 of 3 step" in lines[-1]


def test_of_what_takes_less_than_a_minute_the_end_alone_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress.bar(iterable=range(3), desc="read")) == [0, 1, 2]
    assert re.fullmatch(DATE + "read: 3 of 3 it, .*\n", sys.stderr.getvalue())


def test_of_what_nobody_knows_the_end_none_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress.bar(iterable=iter("ab"), desc="read", unit="text")) == ["a", "b"]
    assert re.fullmatch(DATE + r"read: 2 text, \d\d:\d\d taken\n", sys.stderr.getvalue())


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar(total=3, desc="x") as bar:
        bar.update(3)
    assert "\r" in sys.stderr.getvalue() and "100%" in sys.stderr.getvalue()


def test_notes_are_dated_lines_that_give_no_orders_and_are_kept(tmp_path):
    path = tmp_path / "log.txt"
    for _ in range(2):
        with progress.kept_in(path):
            progress.note("two\nlines \x1b[2J of https://me:secret@host/x")
    progress.note("nobody keeps this")
    lines = path.read_text().splitlines()
    assert [re.sub(DATE, "", line, count=1) for line in lines] == [
        "two lines \ufffd[2J of https://***@host/x",
        "done",
    ] * 2
    assert all(re.match(DATE, line) for line in lines)


def test_a_log_says_how_work_ended_and_ends_none(tmp_path):
    with pytest.raises(ValueError), progress.kept_in(tmp_path / "log.txt"):
        raise ValueError("no room")
    assert (tmp_path / "log.txt").read_text().endswith(" ended: no room\n")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for unusable in (tmp_path / "link", tmp_path / "gone" / "log.txt"):
        with progress.kept_in(unusable):
            progress.note("x")
    assert not (tmp_path / "target").exists()


def test_a_bucket_keeps_a_log(bucket):
    path = as_path(f"{bucket}/log.txt")
    with progress.kept_in(path):
        progress.note("a")
    assert [line[20:] for line in path.read_text().splitlines()] == ["a", "done"]


@pytest.mark.parametrize("seconds, words", [(None, "-"), (4.2, "4.2 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")])
def test_durations_in_words(seconds, words):
    assert progress.duration(seconds) == words
