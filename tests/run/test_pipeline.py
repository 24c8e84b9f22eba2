"""The order of a run's stages."""

import pathlib

import pytest

from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError
from selftrain_jax.run.pipeline import Pipeline

TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")


def test_what_evaluation_refuses_is_refused_before_the_long_work(tmp_path):
    kinds = [stage.name.split("/")[0] for stage in Pipeline(load_config(TINY), tmp_path).stages()]
    assert kinds.index("evaluate") < kinds.index("sample") and kinds[-2:] == ["evaluate", "report"]


LENGTHS = [
    ("subset.num_tokens=512", "batch_size=8 is more than the 7 packed rows there are"),
    ("train.sequence_length=65", "train sequence_length=65 exceeds the model's context of 64"),
    ("sample.max_new_tokens=65", "max_new_tokens=65 exceeds the model's context of 64 tokens"),
]


@pytest.mark.parametrize("setting, message", LENGTHS, ids=[setting for setting, _ in LENGTHS])
def test_what_training_and_sampling_would_refuse_is_refused_before_the_first_stage(tmp_path, setting, message):
    Pipeline(load_config(TINY), tmp_path).check_lengths()
    with pytest.raises(InputError, match=message):
        Pipeline(load_config(TINY, [f"--config.{setting}"]), tmp_path).check_lengths()
