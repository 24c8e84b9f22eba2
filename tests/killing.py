"""A process that dies in the middle of its work, without dying."""

from typing import Any

import pytest


class Killed(BaseException):
    """No `except Exception` of the code under test takes it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int, *calls: tuple[Any, str]) -> None:
    """`Killed` in place of the call after `count` of these functions, each given as its owner and its name, and of
    all later ones."""
    left = iter(range(count))

    def or_die(do):
        def act(*arguments, **named):
            if next(left, None) is None:
                raise Killed
            return do(*arguments, **named)

        return act

    for owner, name in calls:
        monkeypatch.setattr(owner, name, or_die(getattr(owner, name)))
