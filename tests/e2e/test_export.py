"""A finished run's models leave it as Hugging Face directories that anybody can load, card included."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from selftrain_jax.models import hf
from selftrain_jax.models.files.fingerprints import model_inputs
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.run import export
from selftrain_jax.run.references import find_model
from selftrain_jax.sampling.continuation import continue_prompts
from selftrain_jax.training.checkpoint import restore_params
from tests.e2e.conftest import SECRETS
from tests.models.checkpoints import assert_same_bits, refuses
from tests.ties import assert_greedy


@pytest.fixture(scope="module")
def exported(selftrain, finished, tmp_path_factory):
    """The trained model, exported by the command line."""
    directory = tmp_path_factory.mktemp("exported") / "model"
    done = selftrain.command("export", str(finished[0]), str(directory))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"Hugging Face model: {directory}\n" and not done.stderr
    return directory


def test_no_secret_of_the_environment_is_written(selftrain, finished, exported):
    written = selftrain.contents(finished[0]) | selftrain.contents(exported)
    written["standard output"] = finished[1].encode()
    assert any(name.endswith("report.html") for name in written) and any(name.endswith("README.md") for name in written)
    for name, content in written.items():
        for secret, value in SECRETS.items():
            assert value.encode() not in content, f"{secret} in {name}"


def test_looking_at_a_run_writes_nothing_into_it(selftrain, finished, tmp_path):
    def state():
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in finished[0].rglob("*")}

    before = state()
    assert "done     report" in selftrain.succeeds("status", finished[0])
    export.export(finished[0], tmp_path / "out")
    find_model(f"{finished[0]}:self-0").load(None)
    assert state() == before


@pytest.mark.parametrize("model", ["self-0", "real-0", "other-0"])
def test_each_trained_model_is_its_last_checkpoint(finished, tmp_path, model):
    export.export(finished[0], tmp_path / "model", model=model)
    config, params = hf.load_pretrained(tmp_path / "model")
    assert_same_bits(params, restore_params(finished[0] / "train" / model / "checkpoints", config))


def test_base_is_the_student_and_an_earlier_step_another_model(finished, tmp_path):
    steps = sorted(int(p.name) for p in (finished[0] / "train/self-0/checkpoints").iterdir() if p.name.isdigit())
    export.export(finished[0], tmp_path / "base", model="base")
    export.export(finished[0], tmp_path / "early", step=steps[0])
    export.export(finished[0], tmp_path / "last", step=steps[-1])
    base, early, last = (hf.load_pretrained(tmp_path / name)[1] for name in ("base", "early", "last"))
    assert_same_bits(base, hf.load_pretrained(finished[0] / "lab/base/model")[1])
    assert (early["head"]["kernel"] != last["head"]["kernel"]).any()
    cards = {name: (tmp_path / name / "README.md").read_text() for name in ("base", "early", "last")}
    assert "not evaluated" in cards["early"] and "Before and after" not in cards["early"]
    assert "Before and after" in cards["last"]
    for name, step in (("early", steps[0]), ("last", steps[-1])):
        assert f"step {step})" in cards[name] and settings_of(cards[name])["checkpoint"] == step
    assert "checkpoint" not in settings_of(cards["base"])


def settings_of(card):
    return json.loads(card.split("```json\n")[1].split("```")[0])


@pytest.fixture
def run_copy(finished, copy_of):
    """A copy of what an export reads, to change."""
    workdir = copy_of("lab", "train", "report")
    shutil.copy(finished[0] / "config.json", workdir)
    return workdir


def rewrite_report(workdir, text):
    """As if the report had been written so."""
    folder = workdir / "report"
    (folder / "report.json").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["report.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "report.json"


def test_the_card_of_an_unfinished_training_says_so(run_copy, tmp_path):
    (run_copy / "train" / "self-0" / "manifest.json").unlink()
    export.export(run_copy, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    step = settings_of(card)["checkpoint"]
    assert f"under way: these are the weights of step {step}." in card and "Before and after" not in card


def test_a_report_that_measured_nothing_gives_no_table(run_copy, tmp_path):
    rewrite_report(run_copy, '{"metrics": []}')
    export.export(run_copy, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "This checkpoint was not evaluated." in card and "Before and after" not in card


@pytest.mark.parametrize("text", ["[]", "{}", '{"metrics": 5}', '{"metrics": [{}]}', '{"metrics": [5]}', "5", "null"])
def test_a_report_of_another_kind_is_refused(run_copy, tmp_path, text):
    path = rewrite_report(run_copy, text)
    refuses(lambda: export.export(run_copy, tmp_path / "out"), path, "selftrain report")
    assert not (tmp_path / "out").exists()


def test_a_relative_student_is_named_as_such(run_copy, tmp_path, monkeypatch):
    settings = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps(settings | {"student": "./models/mine"}))
    refuses(lambda: export.export(run_copy, tmp_path / "out"), run_copy, "'./models/mine'", "start from there")
    start = tmp_path / "start"
    shutil.copytree(run_copy / "lab" / "base" / "model", start / "models" / "mine")
    for path in run_copy.glob("[tes]*/*/*.json"):
        if "inputs" in (record := json.loads(path.read_text())):  # as if it had been made from there
            if path.parts[-3] in ("train", "evaluate"):
                record["inputs"] |= dict(model_inputs("student", lambda: start / "models" / "mine"))
            record["settings"] |= {"student": "./models/mine"} if "student" in record["settings"] else {}
            path.write_text(json.dumps(record))
    monkeypatch.chdir(start)
    export.export(run_copy, tmp_path / "out")


def test_settings_of_sampling_belong_to_sampled_text(exported, finished, tmp_path):
    export.export(finished[0], tmp_path / "real", model="real-0")
    assert "sample" in settings_of((exported / "README.md").read_text())
    assert "sample" not in settings_of((tmp_path / "real" / "README.md").read_text())


def test_names_on_the_hub_are_quoted():
    card = export._card("gpt_neox", "m", {"source": 'a: "b"/c'}, "", [])
    assert 'base_model: "a: \\"b\\"/c"' in card


def test_a_card_shows_names_letter_by_letter_and_no_place_on_this_machine():
    hostile = "<script>x</script>[a](https://a.example)`|\n# b\x1b[2J"
    settings = {"source": "/home/me/<b>m", "title": hostile, "checkpoint": 1, "text": {"texts": "/home/me/t.jsonl"}}
    row = {"model": "self", "seed": 0, "metric": f"extraction/{hostile}", "value": 0.5, "low": 0, "high": 1, "n": 2}
    card = export._card("gpt_neox", hostile, settings, "self-0", export._table([row], "self-0"))
    code = re.compile(r"`[^`\n]*`")
    outside = code.sub("", card.split("```json")[0])
    assert not re.search(r"[<\[]|https:|\x1b|^# b", outside.replace(" [0.0, 100.0]", ""), re.MULTILINE), outside
    assert "/home" not in card and "\x1b" not in card and "`<b>m`" in card
    assert settings_of(card) == settings | {"source": "<b>m", "text": {"texts": "t.jsonl"}}


def test_the_card_states_settings_and_measured_figures(selftrain, finished, exported):
    card = (exported / "README.md").read_text()
    settings = settings_of(card)
    asked = json.loads((finished[0] / "config.json").read_text())
    assert {name: settings[name] for name in ("sample", "train")} == {name: asked[name] for name in ("sample", "train")}
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    table = {row[0].strip("`"): row[1:] for row in cells}
    figures = {(r["model"], r["metric"]): r for r in selftrain.report(finished[0])["metrics"]}
    measured = [metric for model, metric in figures if model == "self"]
    assert set(measured) == set(table) - {"metric"} and measured
    for metric in measured:
        n, *shown = table[metric]
        assert int(n) == figures["self", metric]["n"]
        for cell, model in zip(shown, ("base", "self")):
            if (model, metric) not in figures:
                assert cell.strip() == "-", (cell, metric)
                assert metric.startswith("contaminated/")  # base has no training text
                continue
            value = figures[model, metric]["value"]
            plain = ("nll", "first_mismatch", "contaminated", "left_log_prob", "planted_auc")
            scale = 1 if metric.startswith(plain) else 100
            assert float(cell.split()[0]) == pytest.approx(scale * value, abs=0.051 if scale == 100 else 0.00051)


def test_transformers_writes_the_same_greedy_tokens(exported, caplog):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    import transformers

    transformers.logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            reference = transformers.AutoModelForCausalLM.from_pretrained(exported)
            tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    finally:
        transformers.logging.disable_propagation()
    assert not caplog.messages
    config, params = hf.load_pretrained(exported)
    words = [word for word, i in load_tokenizer(exported).get_vocab().items() if i > 1]
    text = " ".join(words[:20])
    assert tokenizer(text, add_special_tokens=False).input_ids == load_tokenizer(exported)(text).input_ids
    prompts = np.random.default_rng(0).integers(2, config.vocab_size, (8, 4), dtype=np.int32)
    found = np.array(continue_prompts(params, config, prompts, 40, stop_at_eos=False))
    with torch.no_grad():
        logits = reference(torch.from_numpy(np.concatenate([prompts, found], axis=1)).long()).logits.numpy()
    assert_greedy(found, logits[:, 3:-1], 2e-4)  # of logits of order 10


def test_half_precision_and_the_way_through_orbax(selftrain, finished, exported, tmp_path):
    export.export(finished[0], tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    done = selftrain.command("convert", str(exported), str(tmp_path / "orbax"))
    assert done.returncode == 0, done.stderr[-3000:]
    done = selftrain.command("export", str(tmp_path / "orbax"), str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_faults_leave_nothing_behind(finished, exported, tmp_path):
    source, out = finished[0], tmp_path / "out"
    refuses(lambda: export.export(source, out, model="self-1"), "'self-1'", "self-0, ")
    refuses(lambda: export.export(source, out, step=1000), "step 1000", "there are")
    refuses(lambda: export.export(source, out, model="base", step=1), "step=1", "base")
    refuses(lambda: export.export(source, out, dtype="int4"), "dtype='int4'")
    refuses(lambda: export.export(exported, out), exported, "needs no export")
    refuses(lambda: export.export(tmp_path / "none", out), "config.json")
    refuses(lambda: export.export(source, exported), exported, "not empty")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_behind(finished, tmp_path, monkeypatch):
    """A limit on the size of files stands in for the disk: the system refuses the write half-way."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from selftrain_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", code, "export", str(finished[0]), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-3000:]
    [line] = done.stderr.splitlines()
    assert line.startswith(f"selftrain: error: export directory {tmp_path / 'out'} cannot be written")
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))
    refuses(lambda: export.export(finished[0], tmp_path / "out"), "bytes, but its disk has 100 free")
    assert not list(tmp_path.iterdir())
