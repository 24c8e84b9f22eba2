"""The marks that units of a study leave when they fail, for whoever needs them or reads the page."""

import pathlib
from typing import Iterable

from selftrain_jax.core.files import fingerprint
from selftrain_jax.core.records import read_same, write_record
from selftrain_jax.study.expand import Study

NEEDS_FAILED = "needs {}, which failed"
"""The reason of a unit that waited for another one in vain."""


class Failures:
    """Of the units of a study under its settings; what failed under others may go well now."""

    def __init__(self, study: Study):
        self._folder, self._asked = study.workdir / "failed", {"study": fingerprint(study.config)}

    def _path(self, unit: str) -> pathlib.Path:
        return self._folder / f"{unit.replace('/', '_').replace(': ', '_')}.json"

    def forget(self, unit: str) -> None:
        self._path(unit).unlink(missing_ok=True)

    def write(self, unit: str, reason: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_record(self._path(unit), self._asked, reason=reason)

    def reason(self, unit: str) -> str | None:
        """Why the unit failed; None where it did not."""
        mark = read_same(self._path(unit), self._asked)
        return mark and mark["reason"]

    def notes(self, missing: Iterable[str]) -> list[str]:
        """The note on those of the `missing` units that failed, each of those that are their cause with its reason."""
        reasons = {name: reason for name in missing if (reason := self.reason(name)) is not None}
        in_vain = set(map(NEEDS_FAILED.format, reasons))
        causes = [f"{name}: {reason}" for name, reason in reasons.items() if reason not in in_vain]
        return [f"{len(reasons)} unit{'s' * (len(reasons) > 1)} failed: {'; '.join(causes)}."] if reasons else []
