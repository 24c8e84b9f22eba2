import re
import types

import numpy as np
import pytest

from selftrain_jax.core.records import write_record
from selftrain_jax.data.corpus import Corpus, Document, write_corpus
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.evaluation.items import Items
from selftrain_jax.report.metric import CAPABILITY, Metric
from selftrain_jax.study import collect, costs, rules
from selftrain_jax.study.collect import held_out_memory
from selftrain_jax.study.settings import ModelSettings, StudyConfig
from selftrain_jax.training.settings import TrainConfig

ENDED = {"fingerprint": "0", "seconds": 1.0, "earlier": [], "files": {}}


def probes(**columns):
    rows = len(columns["exact"])
    return Items(probes={"index": np.arange(rows), "length": np.array([2, 2, 4, 2])} | columns)


def test_memory_is_of_held_out_probes_that_the_base_model_extracts():
    """The first is not held out, the last was never extracted: of two probes with 2 and 4 tokens one is lost."""
    before = probes(
        exact=np.array([True, True, True, False]),
        token_share=np.array([1, 1, 1, 0.5]),
        log_prob=np.array([-0.1, -0.2, -0.4, -8]),
    )
    after = probes(
        exact=np.array([False, True, False, True]),
        token_share=np.array([0, 1, 0.25, 1]),
        log_prob=np.array([-9, -1.0, -5.0, -0.1]),
    )
    held_out = np.array([False, True, True, True])
    assert held_out_memory(before, after, held_out) == pytest.approx(
        {"extracted": 2, "lost": 1, "token_share_before": 1, "token_share_after": 0.5}
        | {"log_prob_before": -0.1, "log_prob_after": -1}
    )


def test_without_anything_extracted_there_is_no_memory():
    items = probes(exact=np.zeros(4, bool), token_share=np.zeros(4), log_prob=np.zeros(4))
    assert held_out_memory(items, items, np.ones(4, bool)) is None and held_out_memory(items, items, None) is None


@pytest.mark.parametrize(
    "one_corpus, given, said, unsaid",
    [
        (False, "", "A seed is other samples, another subset", "is the same in"),
        (False, "folder", "is other samples, .* The text of b is the same in every seed", "no other samp"),
        (True, "", "A seed is another subset of the same texts, .* of no other samples, and of no", "is other samples"),
        (True, "folder", "A seed is another subset of the same texts, .* of no other samples, and of no", "text of b"),
    ],
)
def test_seeds_that_share_their_texts_are_not_said_to_have_other_samples(one_corpus, given, said, unsaid):
    models = {"a": ModelSettings(path="a", family="A")}
    models["b"] = ModelSettings(path="" if given else "b", corpus=given, family="B")
    config = StudyConfig(models=models, students=("a",), sources=("a", "b"), one_corpus=one_corpus)
    note = collect._replicates(config)
    assert re.search(said, note) and unsaid not in note and "base models" in note


def test_curves_without_what_was_added_after_training_have_no_means_over_all(tmp_path):
    """Those are over other suites and texts elsewhere, though they have the same names."""
    place = types.SimpleNamespace(workdir=tmp_path, main="self", arms=["self"])
    arm = types.SimpleNamespace(name="a", relation="self", key="a")
    condition = types.SimpleNamespace(name="")
    run = types.SimpleNamespace(pipeline=place, arms=(arm,), student="a", condition=condition, seed=0)

    def measured(folder, suites, texts):
        nll = {name: (np.array([2.0, 4.0]), np.array([1, 2])) for name in texts}
        capability = {(suite, "acc"): np.array([True, False]) for suite in suites}
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Items(capability=capability, nll=nll, documents={name: np.arange(2) for name in texts}).save(tmp_path / folder)

    for step in (0, 4):
        measured(f"train/self-0/curve/{step}", ["one"], ["t"])
    for suites, texts, whole in ((["one"], ["t"], True), (["one", "two"], ["t"], False), (["one"], ["t", "u"], False)):
        measured("evaluate/base", suites, texts)
        rows, found = collect._curves(run, [{}])
        assert found == whole and len(rows) == 2 * (4 if whole else 2)
        assert whole == any(row["metric"] in (CAPABILITY, collect.DRIFT) for row in rows)


def test_a_text_that_repeats_in_one_run_is_noted_whatever_comes_after():
    """The last run, at another budget or seed, does not repeat it."""
    (note,) = collect._repeated([("A", 900, 10), ("real", 10, 10), ("A", 10, 10), ("A", 900, 9)])
    assert note.endswith("times: A.") and collect._repeated([("A", 10, 10)]) == []


def test_the_tokens_of_trainings_are_those_that_were_read(tmp_path):
    """Of 1,100 tokens 17 rows are made, of which two batches of 8 are read, in each of three epochs; twice."""
    results = {"subset": {"num_tokens": 1100}, "train": {"step": 6}, "evaluate": {}, "audit": {"num_documents": 3}}
    units = [types.SimpleNamespace(name=str(i), workdir=tmp_path / str(i), stages=[], config=None) for i in range(3)]
    for unit in units[:2]:
        for kind, result in results.items():
            unit.stages.append(types.SimpleNamespace(name=f"{kind}/self-0"))
            folder = unit.workdir / kind / "self-0"
            folder.mkdir(parents=True)
            write_record(folder / "manifest.json", {"settings": {}, "inputs": {}}, **ENDED, result=result)
    train = TrainConfig(batch_size=8, sequence_length=64, epochs=3)
    study = types.SimpleNamespace(units=units, config=types.SimpleNamespace(train=train))
    tokens = {row["stage"]: row["tokens"] for row in costs.costs(study, {"0", "1"})}
    assert tokens == {"subset": 2 * 1100, "train": 2 * 2 * 8 * 64 * 3, "evaluate": None, "audit": None}


def test_so_many_documents_are_read_as_how_varied_a_corpus_is_takes(tmp_path, monkeypatch):
    """Not all of them, however large the corpus; the mean length is that of all."""
    monkeypatch.setattr(collect, "DIVERSITY_TOKENS", 6)
    documents = [Document(i, np.full(1 + i % 3, 3 + i, np.int32), None, "length", "a b") for i in range(90)]
    write_corpus(tmp_path / "corpus", documents, {})
    read, take = [], Corpus.take
    monkeypatch.setattr(Corpus, "take", lambda corpus, p: (read.append(d) or d for d in take(corpus, p)))
    config = types.SimpleNamespace(subset=SubsetConfig(num_tokens=100))
    pipeline = types.SimpleNamespace(main="self", config=config, corpus_path=lambda arm: tmp_path / "corpus")
    found = collect._corpus_values(pipeline)
    tokens = np.concatenate([document.tokens for document in read])
    assert len(tokens[: -len(read[-1].tokens)]) < 6 <= len(tokens)
    assert found[Metric("distinct_1")] == len(set(tokens[:6].tolist())) / 6 and found[Metric("mean_length")] == 2


@pytest.mark.parametrize("budget", [18, 19])
def test_a_corpus_smaller_than_a_budget_that_repeats_it_ends_no_study(tmp_path, budget):
    """Nine documents of two tokens: their n-grams are compared at 18 tokens, and at no more."""
    documents = [Document(i, np.array([3, 4 + i], np.int32), None, "length", "a b") for i in range(9)]
    write_corpus(tmp_path / "corpus", documents, {})
    config = types.SimpleNamespace(subset=SubsetConfig(num_tokens=budget))
    pipeline = types.SimpleNamespace(main="self", config=config, corpus_path=lambda arm: tmp_path / "corpus")
    found = collect._corpus_values(pipeline)
    assert found[Metric("mean_length")] == 2
    place = {"student": "A", "mode": "replace", "generation": 1, "seed": 0}
    notes = collect._too_small([{**place, "metric": metric, "value": value} for metric, value in found.items()])
    if budget == 18:
        assert found[Metric("distinct_1")] == pytest.approx(10 / 18) and notes == []
    else:
        assert set(found) == {Metric("mean_length")} and notes[0].endswith(": A replace generation 1 seed 0.")


def test_a_suite_that_is_not_judged_by_plain_accuracy_counts_in_the_mean_as_any_other():
    """A quarter of the questions and all of the pairs: with tasks or without, not the pairs alone."""
    hits = {("questions", "acc_norm"): np.array([1, 0, 0, 0], bool), ("pairs", "acc"): np.ones(4, bool)}
    values = collect._values(Items(hits), {})
    task = {Metric("capability", "arc, 0-shot"): 0.4, Metric("capability", "arc, 0-shot", "acc_norm"): 0.9}
    assert values[CAPABILITY] == collect._with_tasks(values, {}, "self-0")[CAPABILITY] == 0.625
    assert collect._with_tasks(values, {"self-0": task}, "self-0")[CAPABILITY] == pytest.approx((0.25 + 1 + 0.4) / 3)
    rows = [{"metric": metric} for metric in values]
    assert [metric.name for metric in rules.suites(rows)] == ["capability/questions:acc_norm", "capability/pairs"]
