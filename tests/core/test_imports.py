import importlib.metadata

import pytest

from selftrain_jax.core import imports
from selftrain_jax.core.errors import InputWarning


@pytest.mark.parametrize(
    "needs, told",
    [
        ("numpy >=2,<3", []),
        ("numpy >=99", ["numpy"]),
        ("numpy ==1.*; python_version < '3'", []),
        ("numpy ==1.*; extra == 'test'", []),
        ("not_here_at_all >=1", []),
    ],
)
def test_libraries_of_other_versions_are_told(monkeypatch, recwarn, needs, told):
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: [needs])
    imports.warn_of_versions("mine")
    found = [str(warning.message) for warning in recwarn if warning.category is InputWarning]
    assert [text.split()[0] for text in found] == told
    assert all("is installed, and mine was tested with >=99 alone: figures may be others" in text for text in found)


def test_a_package_that_is_not_installed_needs_nothing(recwarn):
    imports.warn_of_versions("not_here_at_all")
    assert not recwarn
