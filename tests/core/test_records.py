"""What was asked for before is compared with what is asked for now, and refused by name or done anew."""

import pytest

from selftrain_jax.core import records
from selftrain_jax.core.errors import InputError

ASKED = {"seed": 1, "optimizer": {"betas": (0.9, 0.95), "clip": None}}


def test_a_record_is_read_back_for_the_same_request_only(tmp_path):
    path = tmp_path / "record.json"
    assert records.read_record(path) is None and records.read_same(path, ASKED) is None
    records.write_record(path, ASKED, result=3)
    assert records.read_record(path)["result"] == 3
    assert records.read_same(path, ASKED) == records.read_record(path)
    assert records.read_same(path, ASKED | {"seed": 2}) is None
    path.write_text("{")
    assert records.read_same(path, ASKED) is None
    with pytest.raises(InputError, match="record.json is not valid JSON"):
        records.read_record(path)


def test_a_change_is_refused_by_its_full_name_and_what_is_off_by_default_is_none(tmp_path):
    found = records.plain(ASKED)
    records.refuse_changes("work", found, ASKED, tmp_path, "go")
    del found["optimizer"]["clip"]
    records.refuse_changes("work", found, ASKED | {"new": None}, tmp_path, "go")
    changed = ASKED | {"optimizer": {"betas": (0.9, 0.99), "clip": None}}
    with pytest.raises(InputError) as e:
        records.refuse_changes("work", found, changed, "out", "go elsewhere")
    assert str(e.value) == (
        "work: setting optimizer.betas is [0.9, 0.99] but out was made with [0.9, 0.95]; set it back, or go elsewhere"
    )
