"""What a study says of a unit that failed, and leaves for its other shards."""

import types

from selftrain_jax.core.errors import InputError
from selftrain_jax.study.execute import Execution


def test_why_a_unit_failed_is_told_and_kept_without_passwords(tmp_path):
    def refused():
        raise InputError("no answer from http://me:secret@host/")

    unit = types.SimpleNamespace(name="sample/a", needs=(), done=refused)
    study = types.SimpleNamespace(units=[unit], workdir=tmp_path, config={})
    said = []
    assert Execution(study, said.append).do([0]) == ["sample/a: no answer from http://***@host/"]
    assert said == ["[1/1] sample/a: FAILED: no answer from http://***@host/"]
    assert "secret" not in (tmp_path / "failed" / "sample_a.json").read_text()
