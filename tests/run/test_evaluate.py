"""What an evaluation keeps: everything that does not depend on what has changed."""

import jax
import pytest

from selftrain_jax.core.files import write_json
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.run import evaluate, measure
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.settings import RunConfig


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """`parts(contents, model, **settings)`: setting -> fingerprint of what it is measured with, of files of such
    contents."""
    asked = {}
    monkeypatch.setattr(measure, "load_model", lambda *_: None)
    monkeypatch.setattr(measure, "read_training_texts", lambda *_: [])
    monkeypatch.setattr(measure.memorization, "load_probes", lambda *_: [])
    monkeypatch.setattr(measure.hf, "load_config", lambda *_: None)
    monkeypatch.setattr(measure.summary, "check_groups", lambda *_: None)
    monkeypatch.setattr(measure.suite, "evaluate_model", lambda *_, parts, **named: asked.update(parts))
    monkeypatch.setattr(RunNames, "model_input", lambda *_: {"student": "s"})
    monkeypatch.setattr(RunNames, "model_path", lambda *_: tmp_path)
    monkeypatch.setattr(RunNames, "local_mesh", make_mesh(MeshConfig(), jax.devices()[:1]))

    def found(contents="1111", model="base", trained="t", **settings):
        names = ("wiki.txt", "news.txt", "s.jsonl", "p.jsonl")
        for name, text in zip(names, contents):
            (tmp_path / name).write_text(text)
        wiki, news, suite, probes = (str(tmp_path / name) for name in names)
        files = {"texts": {"wiki": wiki, "news": news}, "multiple_choice": {"sciq": suite}, "probes": probes}
        (tmp_path / "train" / "self-0").mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / "train" / "self-0" / "manifest.json", {"fingerprint": trained})
        run = RunNames(RunConfig(source="student", evaluate=EvaluateSettings(**files | settings)), tmp_path)
        asked.clear()
        evaluate.evaluate_stage(run, model).work(tmp_path)
        return dict(asked)

    return found


ALL = {"texts.wiki", "texts.news", "multiple_choice.sciq", "probes"}


@pytest.mark.parametrize(
    "change, settings, differ",
    [
        ({}, {}, set()),
        ({"contents": "2111"}, {}, {"texts.wiki"}),
        ({"contents": "2111"}, {"nonmembers": "repeats=0"}, {"texts.wiki", "probes"}),  # an attack counts its tokens
        ({"contents": "1121"}, {"nonmembers": "repeats=0"}, {"multiple_choice.sciq"}),
        ({"contents": "1112"}, {}, {"probes"}),
        ({"model": "self-0"}, {}, ALL),
        ({"dtype": "bfloat16"}, {}, ALL),
        ({"curve_points": 3}, {}, set()),
    ],
)
def test_a_part_is_measured_again_only_for_what_it_depends_on(parts, change, settings, differ):
    before, after = parts(**settings), parts(**settings | change)
    assert before.keys() == after.keys() == ALL
    assert {name for name in ALL if before[name] != after[name]} == differ


def test_another_training_is_another_measurement(parts):
    before, after = (parts(model="self-0", trained=of) for of in "ab")
    assert all(before[name] != after[name] for name in ALL)


def test_a_text_that_is_added_leaves_the_others(parts, tmp_path):
    one = {"wiki": str(tmp_path / "wiki.txt")}
    less, more = parts(texts=one), parts()
    assert {name: more[name] for name in less} == less and more.keys() - less.keys() == {"texts.news"}
