"""The marks that units of a study leave when they fail, for whoever needs them or reads the page."""

import pathlib

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
