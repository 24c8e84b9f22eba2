import dataclasses
import math
from typing import Mapping

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import build
from selftrain_jax.data.settings import AuditConfig
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.lab.settings import LabConfig
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.sampling.settings import SampleSettings


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()
    share: int | tuple[int, ...] = 1

    def __post_init__(self):
        if self.rate < 0:
            raise InputError(f"rate={self.rate} must not be negative")


@dataclasses.dataclass(frozen=True)
class Outer:
    needed: int
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flag: bool = False


@pytest.mark.everywhere
def test_every_kind_of_setting_is_built():
    built = build(
        Outer,
        {
            "needed": 3,
            "inner": {"rate": 1, "names": ["a", "b"], "share": [1, 2]},
            "maybe": {"share": 7},
            "many": {"x": {"rate": 0.25}, "y": {}},
            "weights": {"a": 1},
            "flag": True,
        },
    )
    assert built == Outer(
        3, Inner(1.0, ("a", "b"), (1, 2)), Inner(share=7), {"x": Inner(0.25), "y": Inner()}, {"a": 1.0}, True
    )
    assert type(built.inner.rate) is type(built.weights["a"]) is float
    assert build(Outer, {"needed": 3, "maybe": None}) == Outer(3)


BAD = [
    ({"neded": 3}, "unknown setting neded; did you mean 'needed'?"),
    ({"needed": 3, "xyzzy": 1}, "unknown setting xyzzy; known settings: flag, inner, many, maybe, needed, weights"),
    ({"needed": 3, "rate": 1}, "unknown setting rate; did you mean 'inner.rate'?"),
    ({"needed": 3, "inner": {"rat": 1.0}}, "unknown setting inner.rat; did you mean 'rate'?"),
    ({"needed": 3, "maybe": {"rat": 1.0}}, "unknown setting maybe.rat; did you mean 'rate'?"),
    ({"needed": 3, "many": {"x": {"name": []}}}, "unknown setting many.x.name; did you mean 'names'?"),
    ({"needed": "3"}, "setting needed='3' must be of type int"),
    ({"needed": 3.0}, "setting needed=3.0 must be of type int"),
    ({"needed": True}, "setting needed=True must be of type int"),
    ({"needed": None}, "setting needed=None must be of type int"),
    ({"needed": 3, "flag": 1}, "setting flag=1 must be of type bool"),
    ({"needed": 3, "inner": {"rate": "1"}}, "setting inner.rate='1' must be of type float"),
    ({"needed": 3, "inner": 5}, "setting inner=5 must be a group of settings"),
    ({"needed": 3, "many": 5}, "setting many=5 must be a group of settings"),
    ({"needed": 3, "many": {"x": 5}}, "setting many.x=5 must be a group of settings"),
    ({"needed": 3, "weights": {1: 1.0, "1": 2.0}}, "setting weights has two names that read the same"),
    ({"needed": 3, "weights": {"a": "b"}}, "setting weights.a='b' must be of type float"),
    ({"needed": 3, "inner": {"names": "ab"}}, "setting inner.names='ab' must be a list"),
    ({"needed": 3, "inner": {"names": ["a", 1]}}, "setting inner.names=1 must be of type str"),
    ({"needed": 3, "inner": {"share": "x"}}, "setting inner.share='x'"),
    ({"needed": 3, "inner": {"rate": -1.0}}, "rate=-1.0 must not be negative"),
    ({}, "needed"),
]


@pytest.mark.parametrize("values, message", BAD, ids=[message for _, message in BAD])
def test_a_bad_setting_is_named_by_its_full_path_in_one_line(values, message):
    with pytest.raises(InputError) as e:
        build(Outer, values)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.everywhere
def test_a_run_is_built_to_the_bottom():
    config = build(
        RunConfig,
        {
            "source": "some/model",
            "lab": {"base": {"train": {"optimizer": {"learning_rate": 1}}}},
            "controls": {"real": {"texts": "t.jsonl"}, "other": {"source": "another/model"}, "given": {"corpus": "c"}},
            "evaluate": {"texts": {"wiki": "w.txt"}, "probes": "p.jsonl"},
        },
    )
    assert config.lab.base.train.optimizer.learning_rate == 1.0
    assert config.controls == {
        "real": ControlSettings("t.jsonl"),
        "other": ControlSettings(source="another/model"),
        "given": ControlSettings(corpus="c"),
    }
    assert config.evaluate.files() == {"texts.wiki": "w.txt", "probes": "p.jsonl"}
    assert config.lab.other == LabConfig().other
    assert build(RunConfig, {"source": "some/model"}).lab is None
    assert build(RunConfig, {"corpus": "c", "student": "m"}).source == ""
    assert build(RunConfig, {"corpus": "c", "source": "m"}).student == ""


TEMPLATES = ["{{question}}", "{question} {subject}", "{question} {", "{question} {}", "{question!r}", "{question:.9}"]
TEMPLATES += ["{question:>5000}", "{question.upper}", "{question[0]}"]
HEADINGS = [
    ({"source": "org/m"}, "Self-training of org/m"),
    ({"source": "org/m", "student": "org/m", "revision": "step7"}, "Self-training of org/m, revision step7"),
    ({"source": "/models/mine/"}, "Self-training of mine"),
    ({"source": "org/m", "student": "/models/mine"}, "Training of mine on text of org/m"),
    ({"corpus": "/models/mine", "student": "org/m"}, "Training of org/m on text of mine"),
    ({"source": "org/m", "title": "A title"}, "A title"),
]


@pytest.mark.parametrize("values, heading", HEADINGS, ids=[heading for _, heading in HEADINGS])
def test_a_run_is_headed_by_the_models_that_it_has(values, heading):
    assert build(RunConfig, values).heading == heading


REFUSED = [
    ({}, "source"),
    ({"source": "m", "sample": {"num_samples": 0}}, "num_samples=0"),
    ({"source": "m", "sample": {"batch_size": 0}}, "batch_size=0"),
    ({"source": "m", "sample": {"temperature": 0.0}}, "temperature=0.0"),
    ({"source": "m", "sample": {"temperature": -1.0}}, "temperature=-1.0"),
    ({"source": "m", "sample": {"temperature": math.inf}}, "setting sample.temperature=inf must be a finite number"),
    (
        {"source": "m", "sample": {"temperature": 10**400}},
        f"setting sample.temperature=1{79 * chr(48)} must be a finite number",
    ),
    ({"source": "m", "sample": {"dtype": "float16"}}, "dtype='float16'"),
    ({"source": "m", "evaluate": {"dtype": "int8"}}, "dtype='int8'"),
    ({"source": "m", "evaluate": {"template": "Q:"}}, "template='Q:'"),
    *(
        ({"source": "m", "evaluate": {"template": text}}, f"template={text!r} must hold {{question}}")
        for text in TEMPLATES
    ),
    ({"source": "m", "evaluate": {"multiple_choice": {"x": "a"}, "minimal_pairs": {"x": "b"}}}, "both name 'x'"),
    ({"source": "m", "evaluate": {"multiple_choice": {"x:acc_norm": "a"}}}, "'x:acc_norm'"),
    ({"source": "m", "evaluate": {"texts": {"": "a"}}}, "name ''"),
    ({"source": "m", "evaluate": {"texts": {"wiki": "a", "wiki ": "b"}}}, "names 'wiki' and 'wiki ' look alike"),
    ({"source": "m", "evaluate": {"texts": {"\u00e9": "a", "e\u0301": "b"}}}, "look alike"),
    ({"source": "m", "evaluate": {"texts": {"a\x1b[2J": "a"}}}, r"name 'a\x1b[2J'"),
    ({"source": "m", "evaluate": {"held_out_ngram": 0}}, "held_out_ngram=0"),
    ({"source": "m", "evaluate": {"context_len": 0}}, "context_len=0"),
    ({"source": "m", "evaluate": {"suffix_lengths": [8, 8]}}, "suffix_lengths=(8, 8)"),
    ({"source": "m", "evaluate": {"offset_edges": [0, 64]}}, "offset_edges=(0, 64)"),
    ({"source": "m", "evaluate": {"rules": ["acc_chars"]}}, "rules=('acc_chars',)"),
    ({"source": "m", "evaluate": {"probes_chosen": "guessed"}}, "probes_chosen='guessed'"),
    ({"source": "m", "audit": {"ngram": 0}}, "ngram=0"),
    ({"source": "m", "subset": {"num_tokens": 0}}, "num_tokens=0"),
    ({"source": "m", "train": {"batch_size": 6, "grad_accum": 4}}, "batch_size=6"),
    ({"source": "m", "mesh": {"data": 0}}, "'data': 0"),
    ({"source": "m", "lab": {"base": {"mixture": {"poems": 1.0}}}}, "poems"),
    ({"source": "m", "controls": {"self": {"texts": "t"}}}, "'self'"),
    ({"source": "m", "controls": {"a/b": {"texts": "t"}}}, "'a/b'"),
    ({"source": "m", "controls": {"corpus": {"texts": "t"}}}, "'corpus'"),
    ({"corpus": "c"}, "student is empty"),
    ({"student": "m"}, "source is empty"),
    ({"source": "m", "controls": {"real": {}}}, "exactly one"),
    (
        {"source": "m", "controls": {"real": {"source": "s"}}},
        "control 'real' is shown as real text, but is written by s",
    ),
    (
        {"source": "s", "controls": {"other": {"source": "s"}}},
        "control 'other' is shown as another model's text, but is written by s",
    ),
    ({"source": "m", "controls": {"real": {"texts": "t", "corpus": "c"}}}, "exactly one"),
    ({"source": "m", "controls": {"real": {"source": "s", "corpus": "c"}}}, "exactly one"),
    ({"source": "m", "controls": {"real": {"texts": "t", "source": "s"}}}, "exactly one"),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_a_value_out_of_range_is_refused_and_named(values, message):
    with pytest.raises(InputError) as e:
        build(RunConfig, values)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.everywhere
def test_the_decode_loop_is_compiled_for_sampling_settings_only():
    """Two corpora that differ in size and portions alone share one compiled loop."""
    small, large = SampleSettings(num_samples=5, top_k=3), SampleSettings(num_samples=9, batch_size=1, top_k=3)
    assert small.sampling() == large.sampling() != SampleSettings(top_k=4).sampling()
    assert hash(small.sampling()) == hash(large.sampling())


@pytest.mark.everywhere
def test_all_evaluation_files_are_listed_by_the_setting_that_names_them():
    settings = EvaluateSettings(
        texts={"a": "1"}, multiple_choice={"a": "2", "b": "3"}, minimal_pairs={"c": "4"}, probes="5"
    )
    assert settings.files() == {
        "texts.a": "1",
        "multiple_choice.a": "2",
        "multiple_choice.b": "3",
        "minimal_pairs.c": "4",
        "probes": "5",
    }
    assert EvaluateSettings().files() == {}


def test_what_a_claim_would_lack_is_told():
    config = RunConfig(source="m")
    nothing, control = config.lacks()
    assert nothing == (
        "nothing will be measured of capability (evaluate.multiple_choice.NAME), likelihood (evaluate.texts.NAME), "
        "memorization (evaluate.probes)"
    )
    assert control.startswith("there is no control, ") and control.endswith("(controls.real.texts)")
    measured = EvaluateSettings(minimal_pairs={"a": "a.jsonl"}, texts={"b": "b.txt"}, probes="c.jsonl")
    whole = dataclasses.replace(config, evaluate=measured, controls={"real": ControlSettings(texts="r.txt")})
    assert whole.lacks() == ["no benchmark is looked for in the training text (audit.benchmarks.NAME)"]
    assert dataclasses.replace(whole, audit=AuditConfig(benchmarks={"a": "a.jsonl"})).lacks() == []
