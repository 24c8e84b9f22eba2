"""Results as tables: what is in a row, and what the documentation says about it."""

import dataclasses
import json
import pathlib
import re
import types

import jax
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_json, write_jsonl
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation import suite
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import DiscoverableSettings, EvaluateSettings
from selftrain_jax.lab.settings import WorldConfig
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_generated_world
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, Metric
from selftrain_jax.run import summary, tables
from tests.shapes import initial

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tables.md"
HELD = np.arange(8) % 3 > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What `tables` needs of a run of two models, all that is measured on one of them asked for."""
    workdir = tmp_path_factory.mktemp("run")
    files = workdir / "world"
    world = build_world(WorldConfig(num_people=16, max_addend=4, repeats=(0, 8), sequences_per_group=(4, 4)))
    write_generated_world(world, files, 3)
    rows = [json.loads(line) for line in (files / "probes.jsonl").read_text().splitlines()]
    write_jsonl(files / "probes.jsonl", [row | {"id": f"p{i}", "cluster": i // 2} for i, row in enumerate(rows)])
    config = DecoderConfig(
        vocab_size=len(world.words), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_position=64
    )
    hf.save_pretrained(workdir / "model", config, initial(config), files / "tokenizer")
    pairs = [json.loads(line) for line in (files / "suites" / "minimal_pairs.jsonl").read_text().splitlines()][:9]
    pairs[1]["sentence_bad"] = pairs[1]["sentence_good"]  # left out of what is measured
    write_jsonl(files / "pairs.jsonl", [row | {"id": i} for i, row in enumerate(pairs)])
    words = [{"text": text} for text in ("the trees", "people live in the")]
    write_jsonl(files / "words.jsonl", words)
    evaluate = EvaluateSettings(
        texts={"validation": "validation.jsonl"},
        multiple_choice={"recall": "suites/recall.jsonl"},
        minimal_pairs={"pairs": "pairs.jsonl"},
        last_words={"words": "words.jsonl"},
        probes="probes.jsonl",
        rules=("acc", "acc_norm", "acc_bytes"),
        max_unknown=1,
        limit=4,
        free_running=True,
        nonmembers="repeats=0",
        recall_shots=1,
        discoverable=DiscoverableSettings(),
    )
    made = types.SimpleNamespace(
        config=types.SimpleNamespace(evaluate=evaluate),
        workdir=workdir,
        home=workdir,
        main="self",
        student="student",
        arms={"self": None},
        models={"base": None, "self-0": ("self", 0)},
        path=lambda name: files / name,
        model_path=lambda name: workdir / "model",
    )
    mesh, texts = make_mesh(MeshConfig(), jax.devices()[:1]), [pairs[0]["sentence_good"]]
    for seed, (model, trained_on) in enumerate({"base": None, "self-0": texts}.items()):
        suite.evaluate_model(
            (config, initial(config, seed)),
            files / "tokenizer",
            evaluate,
            made.path,
            workdir / "evaluate" / model,
            mesh=mesh,
            name=model,
            trained_on=trained_on,
            reference=lambda: (config, initial(config, 2)),
        )
    return made


@pytest.fixture
def frame(run, monkeypatch, tmp_path):
    masks = {EXTRACTION: np.ones(8, bool), HELD_OUT: HELD}
    masks |= {Metric("extraction", held_out=size): np.ones(8, bool) for size in (13, "suffix")}
    monkeypatch.setattr(summary, "probe_masks", lambda run, arms=None: [masks])
    tables.write_table(tables.item_table(run), tmp_path / "items.parquet")
    return pd.read_parquet(tmp_path / "items.parquet")


def test_a_row_is_an_item_of_a_model_with_its_measures(run, frame):
    for model in run.models:
        items, rows = Items.load(run.workdir / "evaluate" / model), frame[frame.model == model]
        probes = rows[rows.kind == "probes"]
        for column in ("exact", "log_prob", "bleu", "graded", "strength", "length"):
            assert probes[column].tolist() == items.probes[column].tolist(), column
        assert probes.membership_zlib.tolist() == items.membership["zlib"].tolist()
        assert probes.member.tolist() == [False] * 4 + [True] * 4 and probes.repeats.tolist() == [0.0] * 4 + [8.0] * 4
        assert probes.held_out.tolist() == HELD.tolist()
        assert probes.id.tolist() == [f"p{i}" for i in range(8)]
        assert probes.cluster.tolist() == [str(i // 2) for i in range(8)]
        for name, rule in items.capability:
            assert rows[rows.suite == name][rule].tolist() == items.capability[name, rule].tolist()
        windows = rows[rows.suite == "validation"]
        assert (-windows.log_prob).tolist() == items.nll["validation"][0].tolist()
        assert windows.cluster.tolist() == [str(of + 1) for of in items.documents["validation"]]
        assert len(rows) == len(probes) + len(windows) + 4 + 4 + 2
    pairs = frame[frame.suite == "pairs"].groupby("model")
    assert pairs.contaminated.apply(list)["self-0"][0] is True and pairs.contaminated.apply(list)["base"] == [None] * 4
    assert frame[frame.model == "base"].arm.isna().all() and set(frame[frame.model == "self-0"].arm) == {"self"}


def test_items_are_numbered_as_in_their_files_and_shown_as_text(run, frame):
    base = frame[frame.model == "base"]
    pairs = base[base.suite == "pairs"]
    assert pairs.item.tolist() == [int(name) + 1 for name in pairs.id] == [1, 4, 6, 9]  # the second is left out
    rows = [json.loads(line) for line in run.path("suites/recall.jsonl").read_text().splitlines()]
    for _, shown in base[base.suite == "recall"].iterrows():
        row = rows[shown["item"] - 1]
        assert shown.prefix == f"Question: {row['question']}\nAnswer:"
        assert shown.suffix == " " + row["choices"][row["gold"]]
    words = base[base.suite == "words"]
    assert list(zip(words.prefix, words.suffix)) == [("the", " trees"), ("people live in", " the")]
    tokenizer, probes = load_tokenizer(run.workdir / "model"), base[base.kind == "probes"]
    rows = [json.loads(line) for line in run.path("probes.jsonl").read_text().splitlines()]
    assert probes.prefix.tolist() == [tokenizer.decode(row["prefix"]) for row in rows]
    assert [len(text.split()) for text in probes.emitted] == [len(row["suffix"]) for row in rows]  # a word a token
    right = [tokenizer.decode(row["suffix"]) == text for row, text in zip(rows, probes.emitted)]
    assert right == probes.exact.tolist() == (probes.graded == 1).tolist()


def test_every_measure_has_a_column(run):
    items = Items.load(run.workdir / "evaluate" / "base")
    known = tables.ITEM_COLUMNS
    assert items.probes.keys() - known.keys() == {"index", "written"}
    assert {rule for _, rule in items.capability} | {f"membership_{name}" for name in items.membership} <= known.keys()


def test_what_an_attack_leaves_out_is_null():
    measured = Items(membership={"recall": np.array([np.nan, 0.5])}, members=np.array([False, True]))
    masks = [
        {metric: np.ones(2, bool) for metric in (HELD_OUT, *(Metric("extraction", held_out=x) for x in (13, "suffix")))}
    ]
    found = tables._probe_measures({}, measured, masks, 8)["membership_recall"]
    assert found.tolist() == [None, 0.5]


@pytest.mark.parametrize("ending", tables.ENDINGS)
def test_every_kind_of_file_reads_back_the_same(ending, frame, run, tmp_path):
    table, path = tables.item_table(run), tmp_path / f"items{ending}"
    tables.write_table(table, path)
    read = {
        ".csv": pd.read_csv,
        ".jsonl": lambda p: pd.DataFrame(map(json.loads, p.read_text("utf-8").splitlines())),
        ".parquet": pd.read_parquet,
    }
    found = read[ending](path)
    assert list(found.columns) == list(tables.ITEM_COLUMNS)
    for column in ("item", "suffix", "log_prob", "acc", "emitted"):
        values = [[None if pd.isna(value) else value for value in of[column]] for of in (found, frame)]
        assert values[0] == [pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for v in values[1]], column
    if ending == ".parquet":
        field = pyarrow.parquet.read_schema(path).field("bleu")
        assert field.metadata[b"meaning"].decode() == tables.ITEM_COLUMNS["bleu"].meaning
    with pytest.raises(InputError, match="items.xls: its name must end in .parquet"):
        tables.write_table(table, "items.xls")


@pytest.mark.parametrize("ending", tables.ENDINGS)
def test_a_suffix_that_is_never_drawn_is_not_one_that_was_not_measured(ending, tmp_path):
    """JSON has no infinity."""
    table, path = (
        tables._table(tables.ITEM_COLUMNS, {"sampled_log_prob": [-np.inf, -0.5, None]}, 3),
        tmp_path / f"x{ending}",
    )
    tables.write_table(table, path)
    if ending == ".jsonl":
        found = [json.loads(line)["sampled_log_prob"] for line in path.read_text().splitlines()]
        assert found == ["-Infinity", -0.5, None]
        found = [value and float(value) for value in found]
    else:
        found = (pd.read_csv if ending == ".csv" else pd.read_parquet)(path).sampled_log_prob
    assert found[0] == -np.inf and found[1] == -0.5 and pd.isna(found[2])


def test_figures_are_those_of_the_report_with_their_change(run):
    row = {"model": "self", "metric": "nll/wiki", "value": 2.5, "low": 2, "high": 3, "n": 10, "seed": 0}
    change = {"model": "self", "metric": "nll/wiki", "seed": 0, "difference": -0.5, "low": -1, "high": 0}
    figures = {"nll/wiki": dataclasses.asdict(Metric("nll", "wiki")) | {"items": "abc"}}
    report = {"metrics": [row | {"model": "base", "value": 3}, row], "comparisons": [change], "figures": figures}
    (run.workdir / "report").mkdir(exist_ok=True)
    write_json(run.workdir / "report" / "report.json", report)
    base, trained = tables.metric_table(run).to_pylist()
    assert base["difference"] is None and base["arm"] is None and base["value"] == 3
    assert trained["arm"] == "self" and trained["kind"] == "nll" and trained["unit"] == "nats per token"
    assert [trained[c] for c in ("value", "low", "difference", "difference_low")] == [2.5, 2, -0.5, -1]
    assert trained["p_value"] is None and trained["suite"] == "wiki" and trained["items"] == "abc"
    write_json(run.workdir / "report" / "report.json", report | {"figures": {}} | {"metrics": []})
    assert tables.metric_table(run).num_rows == 0
    del report["figures"]
    write_json(run.workdir / "report" / "report.json", report)
    with pytest.raises(InputError, match="write it again with `selftrain report --workdir="):
        tables.metric_table(run)


def test_columns_tell_all_figures_of_the_probes_apart(run):
    several = [Metric("extraction", offset=of) for of in ((0, 63), (64, None), (-1, -1))]
    several += [Metric("discoverable", samples=(n, p)) for n in (1, 10) for p in (0.5, 0.9)]
    several += [EXTRACTION, HELD_OUT, Metric("extraction", suffix=2), Metric("discoverable")]
    row = {"model": "base", "value": 0.5, "low": 0, "high": 1, "n": 10, "seed": 0}
    figures = {metric.name: dataclasses.asdict(metric) | {"items": "abc"} for metric in several}
    report = {"metrics": [row | {"metric": name} for name in figures], "comparisons": [], "figures": figures}
    (run.workdir / "report").mkdir(exist_ok=True)
    write_json(run.workdir / "report" / "report.json", report)
    table = tables.metric_table(run).to_pandas().drop(columns=["metric", "value"])
    assert not table.duplicated().any()
    assert table.offset.dropna().tolist() == ["0-63", "64+", "unknown"]
    assert table.probability.dropna().tolist() == [0.5, 0.9, 0.5, 0.9]


def test_the_documentation_names_every_column_and_its_example_runs(frame, tmp_path, monkeypatch):
    text = DOCS.read_text("utf-8")
    for name, known in (("items", tables.ITEM_COLUMNS), ("metrics", tables.METRIC_COLUMNS)):
        rows = re.search(rf"## Columns of `selftrain {name}`(.*?)(?=\n## |\Z)", text, re.S)[1]
        told = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", rows, re.M)
        assert told == [(column, str(known[column].type), known[column].meaning) for column in known]
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], found)
    assert set(found["accuracy"].columns) == {"recall", "pairs", "words"}
    assert (found["base"].index == found["trained"].index).all() and "suffix" in found["forgotten"]
