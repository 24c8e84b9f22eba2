"""What a study consists of, by name."""

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import ModelSettings, StudyConfig


def test_a_model_named_as_another_at_a_temperature_is_refused(tmp_path):
    models = {"a": ModelSettings(path="a", family="A"), "a_t0p8": ModelSettings(corpus="b", family="B")}
    settings = {"models": models, "students": ("a",), "sources": tuple(models)}
    assert len(Study(StudyConfig(**settings), tmp_path, "").runs[0].arms) == 2
    with pytest.raises(InputError, match="models a, a_t0p8: rename what ends as a temperature does"):
        Study(StudyConfig(**settings, temperatures=(0.8, 1.0)), tmp_path, "").runs  # noqa: B018
