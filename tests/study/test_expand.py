"""What a study consists of, by name."""

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import hf
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import ModelSettings, StudyConfig
from tests.models.checkpoints import write_tokenizer
from tests.shapes import ONE_LAYER, initial


def test_a_model_named_as_another_at_a_temperature_is_refused(tmp_path):
    models = {"a": ModelSettings(path="a", family="A"), "a_t0p8": ModelSettings(corpus="b", family="B")}
    settings = {"models": models, "students": ("a",), "sources": tuple(models)}
    assert len(Study(StudyConfig(**settings), tmp_path, "").runs[0].arms) == 2
    with pytest.raises(InputError, match="models a, a_t0p8: rename what ends as a temperature does"):
        Study(StudyConfig(**settings, temperatures=(0.8, 1.0)), tmp_path, "").runs  # noqa: B018


def test_a_start_that_a_source_cannot_write_is_named_before_any_work(tmp_path):
    hf.save_pretrained(tmp_path / "m", ONE_LAYER, initial(ONE_LAYER), write_tokenizer(tmp_path / "words"))
    for start, message in ((("a",), None), ((99,), r"models\.m: sample start=99: id 99 is none of the 4 ids")):
        models = {"m": ModelSettings(path=str(tmp_path / "m"), family="A", start=start)}
        study = Study(StudyConfig(models=models, students=("m",), sources=("m",)), tmp_path / "study", "")
        if message is None:
            study.check()
            (corpus,) = [unit for unit in study.units if unit.name == "corpora/0/m"]
            assert corpus.stages[0].settings["start"] == ("a",)
        else:
            with pytest.raises(InputError, match=message):
                study.check()
