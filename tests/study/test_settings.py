import dataclasses

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import build
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.report.study_data import RELATIONS
from selftrain_jax.study.settings import ModelSettings, StudyConfig

MODELS = {
    "small": ModelSettings(path="a", family="A", recipe="1"),
    "large": ModelSettings(path="b", family="A", recipe="1"),
    "recipe": ModelSettings(path="c", family="A", recipe="2"),
    "other": ModelSettings(corpus="d", family="B", recipe="1"),
}
GOOD = {"models": MODELS, "students": ("small",), "sources": tuple(MODELS)}


def test_relations():
    config = StudyConfig(**GOOD)
    assert [config.relation(source, "small") for source in MODELS] == list(RELATIONS)
    assert config.relation("small", "other") == RELATIONS[3]


def test_without_sources_each_student_reads_its_own_text_alone():
    config = StudyConfig(**GOOD | {"students": ("small", "large"), "sources": ()})
    assert config.sources_of("large") == ("large",) and config.writers == ("small", "large")
    assert build(StudyConfig, {**GOOD, "sources": (), "generations": {"students": ("small",)}})
    assert StudyConfig(**GOOD | {"sources": ("large", "small")}).sources_of("small") == ("small", "large")


def test_seeds_far_apart_or_without_later_generations_are_as_good_as_any():
    for students, seeds in (((), (0, 1000)), (("small",), (0, 3000)), (("small",), (0, 999))):
        assert build(StudyConfig, {**GOOD, "generations": {"students": students}, "seeds": seeds}).seeds == seeds


def test_conditions_are_named_by_what_differs():
    config = StudyConfig(**GOOD, subset=SubsetConfig(num_tokens=7))
    assert [(c.name, c.num_tokens) for c in config.conditions()] == [("", 7)]
    config = dataclasses.replace(config, budgets=(5, 6), learning_rates=(1e-6, 1e-5))
    assert [c.name for c in config.conditions()] == [
        "5 tokens, lr 1e-06",
        "5 tokens, lr 1e-05",
        "6 tokens, lr 1e-06",
        "6 tokens, lr 1e-05",
    ]
    assert [(c.num_tokens, c.learning_rate) for c in config.conditions()][2] == (6, 1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"students": ()}, "students is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (0, 0)}, "names one of them twice"),
        ({"temperatures": (0.8, 0.8000001)}, "names one of them twice"),
        ({"sources": ("smal",)}, "sources names 'smal', which is none of models: small, large"),
        ({"students": ("other",)}, "'other', of which there is only a corpus"),
        ({"models": MODELS | {"real": ModelSettings(path="x")}}, "'real' must consist of letters"),
        ({"models": MODELS | {"a-b": ModelSettings(path="x")}}, "'a-b' must consist of letters"),
        ({"models": MODELS | {"x": ModelSettings()}}, "models.x needs one of path, corpus"),
        ({"models": MODELS | {"x": ModelSettings(path="a", corpus="b")}}, "models.x needs one of path, corpus"),
        ({"models": MODELS | {"x": ModelSettings(path="x")}}, "models.x needs a family"),
        ({"models": MODELS | {"x": ModelSettings(path="x", family="A")}}, "models.x needs a family, and a recipe"),
        ({"real": "lab:control.jsonl"}, "setting real='lab:control.jsonl' needs a lab"),
        ({"fresh": True}, r"fresh=True needs a generated world"),
        ({"temperatures": (-1.0,)}, "must not be negative"),
        ({"generations": {"students": ("other",)}}, "must be both a student and a source"),
        ({"generations": {"count": 0}}, "count=0 must be at least 1"),
        ({"generations": {"students": ("small",)}, "seeds": (0, 7, 2007)}, "2007 is that of another one's later"),
        ({"generations": {"modes": ("keep",)}}, "must be some of replace, accumulate"),
        ({"proxies": {"num_documents": -1}}, "num_documents=-1 must be at least 0"),
        ({"subset": {"retokenize": "maybe"}}, "retokenize='maybe' must be one of True, False, 'auto'"),
        ({"student": ("small",)}, "unknown setting student; did you mean 'students'"),
    ],
    ids=str,
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        build(StudyConfig, {**GOOD, **changes})
