"""What a study measures of texts beforehand."""

import dataclasses

import pytest

from selftrain_jax.core.files import write_json, write_jsonl
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.run import stages
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import ModelSettings, StudyConfig


@pytest.fixture
def config(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [{"sentence_good": "a cat", "sentence_bad": "cat a"}])
    write_jsonl(tmp_path / "wiki.jsonl", [{"text": "a cat sat"}])
    evaluate = EvaluateSettings(
        minimal_pairs={"pairs": str(tmp_path / "pairs.jsonl")}, texts={"wiki": str(tmp_path / "wiki.jsonl")}
    )
    models = {"a": ModelSettings(path=str(tmp_path / "a"), family="A")}
    return StudyConfig(models=models, students=("a",), seeds=(0,), evaluate=evaluate)


def the_stage(config, workdir):
    """The one that measures the proxies of the student's own text, whose audit is done."""
    study = Study(config, workdir)
    manifest = study.runs[0].pipeline.workdir / "audit" / "corpus" / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_json(manifest, {"fingerprint": "of the audit"})
    return next(unit for unit in study.units if unit.name == "proxies/a-0/a").stages[0]


def done(stage, workdir, inputs):
    record = {"settings": dict(stage.settings), "inputs": inputs, "fingerprint": "x", "files": {}, "result": {}}
    manifest = workdir / stage.name / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_json(manifest, record)


@pytest.mark.parametrize("file", ["pairs", "wiki"])
def test_proxies_of_edited_suites_or_texts_are_stale(config, tmp_path, file):
    workdir = tmp_path / "study"
    stage = the_stage(config, workdir)
    done(stage, workdir, dict(stage.externals()))
    assert not stages.stale(workdir, [stage], models=False)
    path = tmp_path / f"{file}.jsonl"
    path.write_text(path.read_text().replace("cat", "dog"))
    assert "has changed since" in stages.stale(workdir, [stage], models=False)[stage.name].why


def test_proxies_of_suites_that_were_added_or_left_out_are_stale(config, tmp_path):
    """Also where the files of all others are as they were; a record that does not say is as good as ever."""
    workdir, evaluate = tmp_path / "study", config.evaluate
    more = dataclasses.replace(evaluate, last_words={"words": str(tmp_path / "wiki.jsonl")})
    less = dataclasses.replace(evaluate, texts={})
    small, whole, large = (
        the_stage(dataclasses.replace(config, evaluate=one), workdir) for one in (less, evaluate, more)
    )
    done(whole, workdir, dict(whole.externals()))
    assert not stages.stale(workdir, [whole], models=False)
    for other in (small, large):
        assert "has changed since" in stages.stale(workdir, [other], models=False)[whole.name].why
    noted = whole.externals()
    for inputs in ({"audit": noted["audit"]}, {name: value for name, value in noted.items() if name != "files"}):
        done(whole, workdir, inputs)
        assert not stages.stale(workdir, [whole], models=False)
    assert "words has changed since" in stages.stale(workdir, [large], models=False)[whole.name].why


def test_proxies_of_fewer_items_or_other_rows_are_stale(config, tmp_path):
    workdir = tmp_path / "study"
    stage = the_stage(config, workdir)
    done(stage, workdir, dict(stage.externals()))
    fewer, shorter = dataclasses.replace(config.evaluate, limit=1), dataclasses.replace(config.train, sequence_length=8)
    for changed in ({"evaluate": fewer}, {"train": shorter}):
        other = the_stage(dataclasses.replace(config, **changed), workdir)
        assert "its input read" in stages.stale(workdir, [other], models=False)[stage.name].why


def test_proxies_of_a_version_that_noted_the_audit_alone_are_kept(config, tmp_path):
    workdir = tmp_path / "study"
    stage = the_stage(config, workdir)
    done(stage, workdir, {"audit": "of the audit"})
    assert not stages.stale(workdir, [stage], models=False)
    done(stage, workdir, {"audit": "of another"})
    assert stages.stale(workdir, [stage], models=False)
