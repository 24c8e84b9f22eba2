"""Runs that train on corpora made elsewhere: an imported one, and one that another run sampled."""

import json
import pathlib
import shutil
import textwrap

import pytest

from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.rows import read_rows
from selftrain_jax.data.clean import TrainingText, kept_documents
from selftrain_jax.run.checks import check_files
from selftrain_jax.run.pipeline import Pipeline

CONFIG = pathlib.Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module")
def imported(finished, selftrain, tmp_path_factory):
    """The lab's real control text, through the command line, as a corpus in the student's tokens."""
    lab, path = finished[0] / "lab", tmp_path_factory.mktemp("imported") / "corpus"
    text, tokenizer = lab / "world" / "control.jsonl", lab / "base" / "model"
    done = selftrain.command("import", text, path, f"--tokenizer={tokenizer}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("100 documents, ")
    return path


@pytest.fixture
def given(tmp_path, finished, imported):
    """The tiny config with the sampled corpus of the finished run as its main text and the imported one as control."""
    path = tmp_path / "given.py"
    path.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(CONFIG.parent)!r})
        import tiny

        def get_config():
            config = tiny.get_config()
            config.corpus = {str(finished[0] / "sample" / "self" / "corpus")!r}
            config.controls = dict(imported=dict(corpus={str(imported)!r}))
            config.lab.unlock()
            return config
    """)
    )
    return path


@pytest.mark.large
def test_corpora_from_elsewhere_run_to_the_report(finished, selftrain, given, imported, copy_of):
    workdir = copy_of("lab")
    before = selftrain.contents(imported)
    out = selftrain.succeeds("run", workdir, config=given)
    stages = {line.split()[1].split("/")[0] for line in out.splitlines() if line.startswith("[")}
    assert stages == {"lab", "audit", "subset", "train", "evaluate", "report"}
    assert not (workdir / "sample").exists()
    report = selftrain.report(workdir)
    assert {row["model"] for row in report["metrics"]} == {"base", "corpus", "control:imported"}
    assert "corpus" in out and "control:imported" in out
    # The same documents, student and settings as the run that sampled them: the same model.
    old, new = (selftrain.report(w)["metrics"] for w in (finished[0], workdir))
    wanted = {r["metric"]: r["value"] for r in old if r["model"] == "self" and "held_out" not in r["metric"]}
    found = {r["metric"]: r["value"] for r in new if r["model"] == "corpus" and "held_out" not in r["metric"]}
    assert found == wanted
    texts = [row["text"] for row in read_rows(finished[0] / "lab" / "world" / "control.jsonl")]
    kept, _ = kept_documents(workdir / "audit" / "imported", TrainingText(corpus=imported))
    left_out = json.loads((workdir / "audit" / "imported" / "audit.json").read_text())["left_out"]
    assert [d.text for d in kept] == [text for i, text in enumerate(texts) if i not in left_out]
    page = (workdir / "report" / "report.html").read_text()
    assert "text of a given corpus" in page and "control (imported)" in page and "sampled from the model" not in page
    assert selftrain.contents(imported) == before
    assert ": done before" in selftrain.succeeds("run", workdir, config=given)


def test_an_imported_corpus_alone_has_a_report_without_likelihood(selftrain, given, imported, copy_of):
    workdir = copy_of("lab")
    settings = (f"--config.corpus={imported}", "--config.source=", "--config.student=lab:base", "--config.controls={}")
    selftrain.succeeds("run", workdir, *settings, "--config.evaluate.probes=", config=given)
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert report["corpus"]["num_documents"] == 100 and "mean_nll" not in report["corpus"]
    assert report["corpus"]["source"].endswith("control.jsonl") and report["audit"]["nll_histogram"] is None
    page = (workdir / "report" / "report.html").read_text()
    assert "Likelihood of the corpus" not in page and "Sample documents" in page
    assert "nats per token</span>" not in page.split('id="samples"')[1].split("</section>")[0]


def test_a_corpus_that_changed_under_a_run_is_noticed(selftrain, finished, imported, given, copy_of, tmp_path):
    workdir, copied = copy_of("lab"), tmp_path / "c"
    shutil.copytree(imported, copied)
    setting = f"--config.corpus={copied}"
    selftrain.succeeds("audit", workdir, setting, config=given)
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_empty": 0', '"num_empty": 1'))
    done = selftrain("audit", workdir, setting, config=given)
    assert done.returncode == 2 and "audit/corpus" in done.stderr and "input corpus has changed" in done.stderr


BAD = [
    ("missing", "corpus not found"),
    ("unfinished", "is unfinished"),
    ("cut", "is damaged"),
    ("foreign", "another tokenizer"),
]


@pytest.mark.parametrize("fault, message", BAD, ids=[fault for fault, _ in BAD])
@pytest.mark.parametrize("setting", ["corpus", "controls.imported.corpus"])
def test_a_bad_corpus_is_refused_before_any_work(finished, imported, given, tmp_path, fault, message, setting):
    """In this process: what is looked at is `check_files`, which every command calls before its first stage."""
    model = shutil.copytree(finished[0] / "lab" / "base" / "model", tmp_path / "model")
    broken = tmp_path / "broken"
    if fault != "missing":
        shutil.copytree(imported, broken)
    if fault == "unfinished":
        (broken / "manifest.json").unlink()
    if fault == "cut":
        shard = next(broken.glob("corpus-*"))
        shard.write_bytes(shard.read_bytes()[:-100])
    if fault == "foreign":
        path = broken / "manifest.json"
        value = json.loads(path.read_text())
        value["provenance"]["tokenizer_fingerprint"] = "another"
        path.write_text(json.dumps(value))
    fine = [f"--config.student={model}"]
    check_files(Pipeline(load_config(str(given), fine), tmp_path / "run"))
    config = load_config(str(given), [*fine, f"--config.{setting}={broken}"])
    with pytest.raises(InputError, match=f"setting {setting}: .*{message}") as e:
        check_files(Pipeline(config, tmp_path / "run"))
    assert "\n" not in str(e.value)
    if fault == "foreign":
        retokenized = [*fine, f"--config.{setting}={broken}", "--config.subset.retokenize=True"]
        check_files(Pipeline(load_config(str(given), retokenized), tmp_path / "run"))
