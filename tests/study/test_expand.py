"""What a study consists of, by name."""

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.settings import LeakSettings
from selftrain_jax.models import hf
from selftrain_jax.study.checks import check_study
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import GenerationSettings, ModelSettings, StudyConfig
from tests.models.checkpoints import write_tokenizer
from tests.shapes import ONE_LAYER, initial


def test_a_model_named_as_another_at_a_temperature_is_refused(tmp_path):
    models = {"a": ModelSettings(path="a", family="A"), "a_t0p8": ModelSettings(corpus="b", family="B")}
    settings = {"models": models, "students": ("a",), "sources": tuple(models)}
    assert len(Study(StudyConfig(**settings), tmp_path, "").runs[0].arms) == 2
    with pytest.raises(InputError, match="models a, a_t0p8: rename what ends as a temperature does"):
        Study(StudyConfig(**settings, temperatures=(0.8, 1.0)), tmp_path, "").runs  # noqa: B018


def test_every_arm_and_every_generation_looks_for_known_text_where_that_is_asked_for(tmp_path):
    models = {name: ModelSettings(path=name, family="A", recipe=name) for name in "ab"}
    settings = {"models": models, "students": ("a",), "sources": ("a", "b"), "seeds": (0,), "data": str(tmp_path)}
    settings["generations"] = GenerationSettings(count=2, students=("a",), modes=("replace",))

    def stages(leaks):
        units = Study(StudyConfig(**settings, leaks=leaks), tmp_path / "study", "").units
        return {unit.name: [s for s in unit.stages if s.name.startswith("evaluate/leaks/")] for unit in units}

    assert not any(stages(LeakSettings()).values())
    found = {name: of for name, of in stages(LeakSettings({"book": "data:book.txt"})).items() if of}
    assert {name.rpartition("/")[2]: [stage.name for stage in of] for name, of in found.items()} == {
        "a-0: a": ["evaluate/leaks/corpus"],
        "a-0: b": ["evaluate/leaks/b"],
        "2": ["evaluate/leaks/self"],
    }
    assert all(of[0].settings["references"] == {"book": str(tmp_path / "book.txt")} for of in found.values())


def test_a_start_that_a_source_cannot_write_is_named_before_any_work(tmp_path):
    hf.save_pretrained(tmp_path / "m", ONE_LAYER, initial(ONE_LAYER), write_tokenizer(tmp_path / "words"))
    for start, message in ((("a",), None), ((99,), r"models\.m: sample start=99: id 99 is none of the 4 ids")):
        models = {"m": ModelSettings(path=str(tmp_path / "m"), family="A", start=start)}
        study = Study(StudyConfig(models=models, students=("m",), sources=("m",)), tmp_path / "study", "")
        if message is None:
            check_study(study)
            (corpus,) = [unit for unit in study.units if unit.name == "corpora/0/m"]
            assert corpus.stages[0].settings["start"] == ("a",)
        else:
            with pytest.raises(InputError, match=message):
                check_study(study)
