"""What is left of a run."""

import json

from selftrain_jax.cli.status import time_left
from selftrain_jax.run.stages import Stage


def test_the_time_left_is_that_of_stages_of_the_same_kind_and_names_what_has_none(tmp_path):
    names = ("sample/self", "train/self-0", "train/real-0", "train/self-1", "evaluate/self-0")
    todo = [(tmp_path, Stage(name, {}, [], lambda folder: None)) for name in names]
    todo.append((tmp_path, Stage("report", {}, [], lambda folder: None, again=True)))
    assert time_left(todo) == ""
    for name, seconds in (("sample/self", 9), ("train/self-0", 100), ("train/real-0", 200)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text(json.dumps({"seconds": seconds, "fingerprint": name}))
    assert time_left(todo) == "about 2 min 30 s left, and evaluate, not timed yet"
    assert time_left(todo[:3]) == ""
    assert time_left(todo[:3], outgrown=["train/real-0"]) == "about 2 min 30 s left"
