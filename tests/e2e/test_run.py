import json
import re

import numpy as np
import pytest

from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.evaluation.items import Items

pytestmark = pytest.mark.everywhere

STAGES = ("lab", "sample", "audit", "subset", "train", "evaluate", "report")
MODELS = ("base", "self", "control:real", "control:other")


def test_a_run_ends_with_a_table_and_a_report(finished):
    workdir, out = finished
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert report["schema"] == 2
    fields = {"model", "metric", "value", "low", "high", "n", "seed"}
    assert {frozenset(set(row) - fields) for row in report["metrics"]} == {frozenset(), frozenset({"clusters"})}
    measured = {model: {row["metric"] for row in report["metrics"] if row["model"] == model} for model in MODELS}
    assert {row["model"] for row in report["metrics"]} == set(MODELS)
    suites = {f"capability/{suite}" for suite in ("recall", "two_step", "arithmetic", "minimal_pairs")}
    contaminated = {name.replace("capability", "contaminated") for name in suites}  # of base there is no training text
    assert all(measured[model] == measured["base"] | contaminated for model in MODELS[1:])
    groups = {f"extraction/{group}" for group in ("repeats=0", "repeats=8", "repeats=32", "suffix=2")}
    whole = {f"{kind}/all" for kind in ("extraction", "ambiguous", "strength")}
    assert measured["base"] >= {"extraction/held_out", "nll/validation"} | suites | groups | whole
    for row in report["metrics"]:
        counted = row["metric"] in contaminated and row["low"] is None
        assert (counted or row["low"] <= row["value"] <= row["high"]) and row["n"] > 0
    assert {row["model"] for row in report["comparisons"]} == set(MODELS[1:])
    assert f"--workdir={workdir}" in report["command"]

    log = (workdir / "log.txt").read_text()
    assert log.count("done in ") == out.count("\n[") + out.startswith("[") and re.search("about .* left", log)

    table = (workdir / "report" / "table.txt").read_text()
    assert table in out and str(workdir / "report" / "report.html") in out
    assert all(model in table for model in MODELS) and table.isascii()
    page = (workdir / "report" / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and "Tiny" in page
    probes = re.findall(r"<tr><td.*?</tr>", page[page.index('<h2 id="probes">') : page.index('<h2 id="drawn">')], re.S)
    exact = Items.load(workdir / "evaluate" / "base").probes["exact"]
    assert [bool(re.search("<td>[^<]*base", row)) for row in probes] == exact.tolist()
    documents = page[page.index('<h2 id="documents">') : page.index('<h2 id="samples">')]
    assert documents.count("<tr><td") == min(300, len(read_corpus(workdir / "sample" / "self" / "corpus")))


def test_the_stages_follow_one_another(finished):
    stages = [line.split()[1] for line in finished[1].splitlines() if line.startswith("[")]
    early = ["evaluate/base", "audit/real", "subset/real-0"]  # which may be refused: before anything is sampled
    start = stages.index(early[0])
    assert stages[start : start + 4] == [*early, "sample/self"]
    stages = stages[:start] + stages[start + 3 :]
    names = [stage.split("/")[0] for stage in stages]
    assert names == sorted(names, key=STAGES.index) and set(names) == set(STAGES)


def test_training_changes_every_model_differently(finished, selftrain):
    workdir, _ = finished
    trained = [selftrain.params(workdir, f"{arm}-0")["['head']['kernel']"] for arm in ("self", "real", "other")]
    assert all(np.isfinite(head).all() for head in trained)
    assert not any(np.array_equal(trained[i], trained[j]) for i in range(3) for j in range(i))


def test_the_same_command_again_makes_the_report_alone_and_says_the_same(finished, selftrain):
    workdir, out = finished

    def contents():
        return {name: data for name, data in selftrain.contents(workdir).items() if name != "report/manifest.json"}

    before = contents()
    again = selftrain.succeeds("run", workdir)
    assert contents() == before
    (*done, report), rest = again.split("\n\n", 1)[0].splitlines(), again.split("\n\n", 1)[1]
    assert all(line.endswith(": done before") for line in done) and report.endswith("] report")
    assert rest == out.split("\n\n", 1)[1]


@pytest.mark.large
def test_stage_by_stage_is_the_same_run(finished, selftrain, tmp_path):
    for stage in STAGES:
        out = selftrain.succeeds(stage, tmp_path)
        begun = {p.name for p in tmp_path.iterdir() if p.is_dir()}
        assert begun == set(STAGES[: STAGES.index(stage) + 1])
    assert selftrain.report(tmp_path) == selftrain.report(finished[0])
    assert (tmp_path / "report" / "table.txt").read_text() in out
    for model in ("self-0", "real-0", "other-0"):
        wanted = selftrain.params(finished[0], model)
        for name, leaf in selftrain.params(tmp_path, model).items():
            np.testing.assert_array_equal(leaf, wanted[name], err_msg=f"{model}: {name}")


def test_the_page_counts_the_tokens_that_were_sampled_and_trained_on(finished):
    """Of a budget of 1,537 tokens 24 rows are made, and every target of each is read once an epoch."""
    workdir, page = finished[0], (finished[0] / "report" / "report.html").read_text()
    counted = {"sample/self": sum(len(d.tokens) for d in read_corpus(workdir / "sample" / "self" / "corpus"))}
    for model in ("self-0", "real-0", "other-0"):
        lines = (workdir / "train" / model / "metrics.jsonl").read_text().splitlines()
        counted[f"train/{model}"] = int(sum(json.loads(line)["targets"] for line in lines))
    assert counted["train/self-0"] == 6144
    for stage, tokens in counted.items():
        row = page.partition(f'<tr><th scope="row">{stage}</th>')[2].partition("</tr>")[0]
        assert f">{tokens:,}<" in row


def test_eight_devices_sample_the_same_tokens(finished, selftrain, copy_of):
    workdir = copy_of("lab")
    out = selftrain.succeeds("sample", workdir, "--show=2", devices=8)
    found, wanted = (read_corpus(w / "sample" / "self" / "corpus") for w in (workdir, finished[0]))
    assert len(found) == len(wanted) == 64
    for a, b in zip(found, wanted):
        assert (a.id, a.stop_reason, a.text) == (b.id, b.stop_reason, b.text)
        np.testing.assert_array_equal(a.tokens, b.tokens)
    assert wanted[0].text in out and wanted[1].text in out
