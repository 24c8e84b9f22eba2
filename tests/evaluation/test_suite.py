"""All that is measured on one model, down to the rows of the report, on an untrained model of a generated world."""

import contextlib
import dataclasses
import json
import math
import pathlib
import types
import warnings

import jax
import numpy as np
import pytest
from tokenizers import normalizers

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.packing import pack
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation import suite
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.membership import ATTACKS
from selftrain_jax.evaluation.memorization import Probe, load_probes, probe_columns
from selftrain_jax.evaluation.settings import SUITES, DiscoverableSettings, EvaluateSettings
from selftrain_jax.lab.settings import WorldConfig
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_generated_world
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.tokenizer import encode_texts, load_tokenizer, unknown_tokens
from selftrain_jax.report.data import ReportData
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, Metric, each_suite, group_extraction
from selftrain_jax.report.page import render_html
from selftrain_jax.report.tables import format_table
from selftrain_jax.run import summary
from tests.shapes import initial

SETTINGS = EvaluateSettings(
    texts={"validation": "validation.jsonl"},
    minimal_pairs={"minimal_pairs": "suites/minimal_pairs.jsonl"},
    probes="probes.jsonl",
    add_bos=True,
    batch_size=32,
    context_len=8,
    suffix_lengths=(1, 3),
    offset_edges=(4,),
    free_running=True,
    nonmembers="repeats=0",
    recall_shots=1,
    discoverable=DiscoverableSettings(samples=(1, 100), top_k=0),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    world = build_world(WorldConfig(num_people=16, max_addend=4, repeats=(0, 8), sequences_per_group=(6, 6)))
    write_generated_world(world, directory, 3)
    path = directory / "probes.jsonl"
    rows = [json.loads(line) | {"offset": i} for i, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory, DecoderConfig(
        vocab_size=len(world.words), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_position=64
    )


@pytest.fixture(scope="module")
def measured(world, tmp_path_factory):
    """(manifest summary, items)"""
    directory, config = world
    out = tmp_path_factory.mktemp("evaluate")
    params = initial(config)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = config, params
    arguments = {"mesh": mesh, "name": "base", "reference": lambda: (config, initial(config, seed=1))}
    found = suite.evaluate_model(
        model, directory / "tokenizer", SETTINGS, lambda name: directory / name, out, **arguments
    )
    return found, Items.load(out)


def test_items_cover_every_probe(measured):
    found, items = measured
    fields = {"exact", "first_mismatch", "strength", "least_margin", "graded", "bleu", "edit_similarity"}
    assert all(items.probes[field].shape == (12,) for field in fields)
    assert items.probes["index"].tolist() == items.probes["offset"].tolist() == list(range(12))
    assert items.probes["group"].tolist() == ["repeats=0"] * 6 + ["repeats=8"] * 6
    assert items.membership.keys() == set(ATTACKS)
    assert [attack for attack, scores in items.membership.items() if np.isnan(scores).any()] == ["recall"]
    assert np.flatnonzero(np.isnan(items.membership["recall"])).tolist() == [0]
    assert items.members.tolist() == [False] * 6 + [True] * 6
    assert found["bits_per_char/validation"] == pytest.approx(found["bits_per_byte/validation"])  # all ASCII
    assert found["word_perplexity/validation"] > 1
    assert found["add_bos"] is True


def test_what_was_measured_is_kept_and_only_the_new_is_scored(world, measured, tmp_path, monkeypatch):
    """Text set, suites and probes one after another, as all at once; another fingerprint is another measurement."""
    directory, config = world
    scored = []
    score = suite.score
    monkeypatch.setattr(
        suite, "score", lambda p, c, sequences, *a, **k: scored.append(1) or score(p, c, sequences, *a, **k)
    )
    recall = {"recall": "suites/recall.jsonl"}
    whole = dataclasses.replace(SETTINGS, multiple_choice=recall)
    less = {"texts": {}, "minimal_pairs": {}, "probes": "", "nonmembers": "", "suffix_lengths": (), "offset_edges": ()}
    less |= {"recall_shots": None, "discoverable": None}
    first = dataclasses.replace(whole, **less)
    documents = [
        json.loads((directory / "suites" / "minimal_pairs.jsonl").read_text().splitlines()[0])["sentence_good"]
    ]

    def evaluate(settings, out, of="1", **more):
        scored.clear()
        parts = {setting: of for setting in settings.files()}
        found = suite.evaluate_model(
            (config, initial(config)),
            directory / "tokenizer",
            settings,
            lambda name: directory / name,
            out,
            mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
            name="self-0",
            trained_on=documents,
            parts=parts | more,
        )
        return found, len(scored)

    evaluate(first, tmp_path / "grown")
    steps = [{"minimal_pairs": whole.minimal_pairs}, {"texts": whole.texts}, {"probes": whole.probes}]
    settings = first
    for step in steps:
        settings = dataclasses.replace(settings, **step)
        assert evaluate(settings, tmp_path / "grown")[1] == 1  # a text set, a suite and extraction are a call each
    at_once, _ = evaluate(settings, tmp_path / "whole")
    grown, again = evaluate(settings, tmp_path / "grown")
    assert grown == at_once and again == 0
    files = [tmp_path / name / "items.npz" for name in ("grown", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Items.load(tmp_path / "grown").contaminated["minimal_pairs"].any()
    changed, calls = evaluate(settings, tmp_path / "grown", **{"texts.validation": "2"})
    assert changed == at_once and calls == 1
    files[0].write_bytes(b"damaged")
    assert evaluate(settings, tmp_path / "grown") == (at_once, 4)


def test_items_know_what_they_share(world, measured):
    """Minimal pairs their noun or person, windows their text; planted sequences nothing."""
    directory, _ = world
    rows = [json.loads(line) for line in (directory / "suites" / "minimal_pairs.jsonl").read_text().splitlines()]
    labels, clusters = [row["cluster"] for row in rows], measured[1].clusters["minimal_pairs"]
    assert (np.equal.outer(clusters, clusters) == [[a == b for b in labels] for a in labels]).all()
    assert len(set(labels)) < len(rows) / 2
    texts = (directory / "validation.jsonl").read_text().splitlines()
    assert set(measured[1].documents["validation"].tolist()) == set(range(len(texts)))
    assert "cluster" not in measured[1].probes


def test_a_label_of_a_cluster_is_a_name_or_a_number(world, tmp_path):
    directory, config = world
    tokenizer, settings = load_tokenizer(directory / "tokenizer"), EvaluateSettings(minimal_pairs={"p": "p.jsonl"})
    row = json.loads((directory / "suites" / "minimal_pairs.jsonl").read_text().splitlines()[0])
    for label, fits in (("a person", True), (7, True), (None, True), (0.5, False), (["a"], False), (True, False)):
        (tmp_path / "p.jsonl").write_text(json.dumps(row | {"cluster": label}))
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(InputError, match="suite p in p.jsonl, item 1: cluster=")
        ):
            suite.read_inputs(settings, lambda name: tmp_path / name, config, tokenizer)


def test_items_become_rows_with_intervals(measured):
    _, items = measured
    masks = {EXTRACTION: np.ones(12, bool), Metric("extraction", offset=(0, 3)): np.arange(12) < 4}
    rows = list(summary._measure(items, masks, SETTINGS, items))
    ReportData(title="", metrics=[{"model": "base", "seed": 0, **row} for row in rows])  # fractions where they must be
    values = {row["metric"].name: row for row in rows}
    assert all(row["low"] <= row["value"] <= row["high"] and row["n"] > 0 for row in rows)
    whole = ("ambiguous", "token_share", "first_mismatch", "strength", "graded", "approximate", "edit_similarity")
    assert values.keys() >= {f"{kind}/all" for kind in whole} | {"extraction/suffix=1", "extraction/suffix=3"}
    assert values["extraction/offset=0-3"]["n"] == 4
    assert values["graded/all"]["value"] == pytest.approx(items.probes["graded"].mean())
    assert values["extraction/suffix=1"]["value"] >= values["extraction/suffix=3"]["value"]
    # A model that has never seen any of them cannot tell planted probes from others.
    assert values["membership_auc/min_k_plus"]["low"] < 0.5 < values["membership_auc/min_k_plus"]["high"]
    assert values["tpr_at_fpr_0.001/loss"]["low"] == 0
    assert values["tpr_at_fpr_0.001/loss"]["n"] == items.members.sum() < values["membership_auc/loss"]["n"] == 12
    names = [
        f"{kind}{k}" for kind in ("graded", "edit_similarity", "common_run") for k in ("/all", "/suffix=1", "/suffix=3")
    ]
    assert [name in values for name in names] == [True] * 9
    assert (
        values["graded/suffix=1"]["value"] == values["extraction/suffix=1"]["value"] == items.probes["graded/1"].mean()
    )
    assert (items.probes["common_run/1"] == items.probes["graded/1"]).all()  # one token is common, or is not
    assert (items.probes["common_run/3"] <= items.probes["common_run"]).all()
    assert (values["membership_auc/recall"]["n"], values["membership_auc/loss"]["n"]) == (11, 12)
    assert values["exposure/all"]["n"] == 6 and 0 <= values["exposure/all"]["value"] <= math.log2(7)
    # Without top-k, p_z is the likelihood: 100 samples suffice for p = 0.5 where 100 >= log(0.5) / log(1 - p_z).
    p_z = np.exp(items.probes["log_prob"])
    assert np.exp(items.probes["sampled_log_prob"]) == pytest.approx(p_z, rel=1e-3)
    assert values["discoverable/n=100,p=0.5"]["value"] == np.mean(1 - (1 - p_z) ** 100 >= 0.5)
    compared = summary._compare(*2 * [summary.hits(items, masks, SETTINGS.suffix_lengths)])
    changes = {row["metric"].name: row["difference"] for row in compared}
    assert changes.keys() >= {"extraction/all", "extraction/suffix=3", "approximate/all"} and not any(changes.values())


@pytest.mark.parametrize(
    "rules, of_curve",
    [(("acc", "acc_norm"), "acc"), (("acc_norm", "acc"), "acc"), (("acc_bytes", "acc_norm"), "acc_bytes")],
)
def test_curves_and_means_over_suites_judge_by_the_same_rule(rules, of_curve):
    assert EvaluateSettings(rules=rules).for_curve().rules == (of_curve,)
    assert [metric.rule for metric in each_suite(Metric("capability", "x", rule) for rule in rules)] == [of_curve]


def test_items_are_what_they_were_after_a_file(tmp_path):
    """Names are the user's: they may hold what the file's own keys are made with."""
    items = Items(
        capability={("a/b:c", "acc"): np.array([True]), ("a/b:c", "acc_norm"): np.array([False])},
        nll={
            name: (np.array([i + 0.5]), np.array([3])) for i, name in enumerate(("x", "x/tokens", "x:tokens", "x.npy"))
        },
        probes={"group": np.array(["repeats=8"]), "offset": np.array([-1])},
        membership={"loss": np.array([0.5])},
        members=np.array([True]),
        contaminated={"a/b:c": np.array([True])},
        clusters={"a/b:c": np.array([1])},
        documents={"x/tokens": np.array([0])},
    )
    for before in (items, Items()):
        before.save(tmp_path / "new")
        np.testing.assert_equal(vars(Items.load(tmp_path / "new")), vars(before))


def test_capability_is_shown_for_contaminated_items_and_the_others_with_the_base_on_the_same():
    """20 items, of which the first 12 stand in the text: base has 3 of them and all others, the model 9 and none."""
    flags, place = np.arange(20) < 12, np.arange(20)
    base = Items(capability={(name, "acc"): (place < 3) | ~flags for name in ("recall", "clean")})
    after = {("recall", "acc"): place < 9, ("clean", "acc"): place < 9}
    few = np.arange(20) < summary.LEAST_ITEMS - 1
    assert not list(summary._by_contamination(base, Items(after, contaminated={"recall": flags, "clean": few})))
    base, after = ({k: np.tile(v, 2) for k, v in of.items()} for of in (base.capability, after))
    trained = Items(after, contaminated={"recall": np.tile(flags, 2), "clean": np.zeros(40, bool)})
    rows = list(summary._by_contamination(Items(base), trained))
    shown = ("in_training_text", "n", "before", "after", "difference")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        (True, 24, 0.25, 0.75, 0.5),
        (False, 16, 1.0, 0.0, -1.0),
    ]
    assert all(row["metric"] == Metric("capability", "recall") for row in rows)
    rows = [{"model": "self", "seed": 0, **row} for row in rows]
    count = {"metric": Metric("contaminated", "recall"), "value": 24, "low": None, "high": None, "n": 40}
    data = ReportData(title="", metrics=[{"model": "self", "seed": 0, **count}], contamination=rows)
    table, page = format_table(data), render_html(data)
    assert "contaminated items" in table and "recall, in the text (n 24): 25.0 % -> 75.0 %, +50.0" in table
    assert "recall, not in it (n 16): 100.0 % -> 0.0 %, -100.0" in table
    assert "in the text</td>" in page and "25.0\u00a0% \u2192 75.0\u00a0%" in page.replace(" %", "\u00a0%")


def test_shuffled_text_takes_no_probe_out_of_the_held_out_set(world, tmp_path, monkeypatch):
    """The shuffled control holds probe 0, and real text probe 1, by chance: only the second is no longer held out."""
    directory, config = world
    monkeypatch.setattr(summary, "load_config", lambda _: config)
    monkeypatch.setattr(summary, "load_tokenizer", lambda _: load_tokenizer(directory / "tokenizer"))
    probes = load_probes(directory / "probes.jsonl", config)
    Items(probes={"index": np.arange(12)} | probe_columns(probes)).save(tmp_path / "evaluate" / "base")
    for number, arm in enumerate(("shuffled", "real")):
        text = np.concatenate([probes[number].prefix, probes[number].suffix])
        rows = pack([text], bos_token_id=0, sequence_length=len(text))
        (tmp_path / "subset" / f"{arm}-0").mkdir(parents=True)
        np.savez(tmp_path / "subset" / f"{arm}-0" / "rows.npz", **vars(rows))
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(evaluate=SETTINGS, subset=SubsetConfig(num_subsets=1)),
        arms=("real", "shuffled"),
        student="m",
        model_path=lambda name: name,
        path=lambda name: directory / name,
        workdir=tmp_path,
    )
    [masks] = summary.probe_masks(run)
    assert np.flatnonzero(~masks[HELD_OUT]).tolist() == [1]
    assert masks[group_extraction("repeats=0")].sum() == 6
    [masks] = summary.probe_masks(run, ["shuffled"])
    assert masks[HELD_OUT].all()


@pytest.mark.parametrize("kind", ["texts", *SUITES])
def test_text_that_the_tokenizer_cannot_write_is_told_and_refused(world, kind):
    tokenizer = load_tokenizer(world[0] / "tokenizer")
    known = next(word for word in tokenizer.get_vocab() if word.isalpha())
    make = {
        "texts": lambda text: [text],
        "multiple_choice": lambda text: [{"question": text, "choices": [text, f"{text} {text}"], "gold": 0}],
        "minimal_pairs": lambda text: [{"sentence_good": text, "sentence_bad": f"{text} {text}"}],
        "last_words": lambda text: [{"text": text}],
    }[kind]

    def shares(text):
        read = {name: {"x": make(text)} if name == kind else {} for name in ("texts", *SUITES)}
        return suite.unknown_shares(EvaluateSettings(), *read.values(), tokenizer)

    assert shares(f"{known} {known}") == {}
    assert shares(" ".join([known] * 50) + " é") == {f"{kind}.x": pytest.approx(1 / (1 + 50 * len(known)))}
    with pytest.raises(
        InputError, match=f"evaluate {kind}.x: 100.0% of the characters .* raise evaluate.max_unknown=0.1"
    ):
        shares("É tranger é lle")


@pytest.mark.parametrize("kind", ["multiple_choice", "minimal_pairs"])
def test_answers_that_the_tokenizer_reads_alike_are_told_and_refused(world, kind):
    """Of a tokenizer that lowers letters: of two choices the first would win, and no pair would be right."""
    tokenizer = load_tokenizer(world[0] / "tokenizer")
    word, other = [word for word in tokenizer.get_vocab() if word.isalpha()][:2]
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    def items(same, of):
        wrong = [word.upper()] * same + [other] * (of - same)
        if kind == "minimal_pairs":
            return [{"sentence_good": word, "sentence_bad": text} for text in wrong]
        return [{"question": other, "choices": [text, word], "gold": 1} for text in wrong]

    def check(same, of):
        read = {name: {"x": items(same, of)} if name == kind else {} for name in ("texts", *SUITES)}
        suite.unknown_shares(EvaluateSettings(), *read.values(), tokenizer)

    check(0, 10)
    with pytest.warns(InputWarning, match=f"evaluate {kind}.x: .* like a wrong one in 1 of 10 items, first item 1"):
        check(1, 10)
    with pytest.raises(InputError, match="in 2 of 10 items, .* raise evaluate.max_unknown=0.1"):
        check(2, 10)


def test_what_is_read_can_be_limited(world, tmp_path):
    """Items evenly, characters from the beginning, and windows no longer than asked for."""
    directory, config = world
    tokenizer = load_tokenizer(directory / "tokenizer")
    texts = [row["text"] for row in map(json.loads, (directory / "validation.jsonl").read_text().splitlines())]
    write_jsonl(tmp_path / "words.jsonl", [{"text": f"{text} {i}"} for i, text in enumerate(texts)])
    files = {"v": str(directory / "validation.jsonl")}
    settings = EvaluateSettings(
        texts=files, last_words={"w": str(tmp_path / "words.jsonl")}, limit=3, max_chars=len(texts[0]) + 5, max_length=4
    )
    cut, _, _, words, _ = suite.read_inputs(settings, pathlib.Path, config, tokenizer)
    assert cut == {"v": [texts[0], texts[1][:5]]}
    assert [row["text"].split()[-1] for row in words["w"]] == ["0", str((len(texts) - 1) // 2), str(len(texts) - 1)]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = config, initial(config)
    suite.evaluate_model(model, directory / "tokenizer", settings, pathlib.Path, tmp_path, mesh=mesh, name="base")
    items = Items.load(tmp_path)
    assert items.capability["w", "acc"].shape == (3,)
    assert items.nll["v"][1].max() == 4 and items.nll["v"][1].sum() == sum(map(len, encode_texts(tokenizer, cut["v"])))


def test_unknown_text_is_a_note_of_the_report():
    notes = ReportData(title="", metrics=[], unknown={"texts.wiki": 0.0312}).notes
    assert notes == ["Unknown to the tokenizer, so that figures speak of the rest: 3.1 % of texts.wiki."]


@pytest.mark.parametrize(
    "group", ["held_out", "held_out=13", "held_out/rare", "offset=0-3", "suffix=3", "first 3 tokens"]
)
def test_groups_of_probes_called_as_other_figures_are_refused(group):
    probes = [Probe(np.array([1]), np.array([2]), name, 0) for name in ("rare", group)]
    with pytest.raises(InputError, match=f"would stand for two figures: give another name to .*'{group}'"):
        summary.check_groups(probes, SETTINGS)
    summary.check_groups([probes[0], dataclasses.replace(probes[1], group="all")], SETTINGS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"suffix_lengths": (1, 99)}, r"suffix_lengths=\(1, 99\) go beyond the shortest suffix"),
        ({"nonmembers": "repeats=1"}, "nonmembers='repeats=1' must be one of several groups .*repeats=0, repeats=8"),
        ({"recall_shots": 6}, "recall_shots=6 must leave non-members"),
        ({"recall_shots": 5}, "recall_shots=5 makes sequences of 192 tokens, .* context of 64: lower it"),
        ({"nonmembers": ""}, "recall_shots=1 needs nonmembers"),
        ({"context_len": 65}, "context_len=65 is longer than the model's context of 64"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_any_work(world, change, message):
    directory, config = world
    with pytest.raises(InputError, match=message):
        settings, tokenizer = dataclasses.replace(SETTINGS, **change), load_tokenizer(directory / "tokenizer")
        suite.read_inputs(settings, lambda name: directory / name, config, tokenizer)


def test_probes_hold_ids_of_the_tokenizer(world, tmp_path):
    directory, config = world
    tokenizer = load_tokenizer(directory / "tokenizer")
    last = max(tokenizer.get_vocab().values())
    larger = dataclasses.replace(config, vocab_size=last + 2)  # a row of padding
    for suffix, fits in ((last, True), (last + 1, False)):
        (tmp_path / "probes.jsonl").write_text(json.dumps({"prefix": [1], "suffix": [suffix]}))
        settings = EvaluateSettings(probes="probes.jsonl")
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match=rf"probe 1: id {suffix} is none"):
            suite.read_inputs(settings, lambda name: tmp_path / name, larger, tokenizer)


def test_probes_of_unknown_text_are_told(world, tmp_path):
    directory, config = world
    tokenizer = load_tokenizer(directory / "tokenizer")
    [unknown] = unknown_tokens(tokenizer).keys() - {config.bos_token_id}
    for last, told in ((4, False), (config.bos_token_id, False), (unknown, True)):
        write_jsonl(tmp_path / "probes.jsonl", [{"prefix": [2], "suffix": [3, of]} for of in (3, last)])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            suite.read_inputs(EvaluateSettings(probes="probes.jsonl"), tmp_path.joinpath, config, tokenizer)
        assert told == any("1 of 2 probes, first probe 2, hold a token of unknown" in str(of.message) for of in said)


@pytest.mark.parametrize("kind", ["multiple_choice", "minimal_pairs"])
def test_an_item_longer_than_the_context_is_refused_with_the_name_of_its_suite(world, tmp_path, kind):
    directory, config = world
    word, long = "one", "one " * 80
    row = {"question": word, "choices": [word + " two", long], "gold": 0, "sentence_good": word, "sentence_bad": long}
    (tmp_path / "suite.jsonl").write_text(json.dumps(row))
    settings = EvaluateSettings(**{kind: {"mine": "suite.jsonl"}}, max_unknown=1.0)
    with pytest.raises(InputError, match=f"^evaluate {kind}.mine: .*the model's context of 64"):
        suite.evaluate_model(
            (config, initial(config)),
            directory / "tokenizer",
            settings,
            lambda name: tmp_path / name,
            tmp_path,
            mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
            name="base",
        )


@pytest.mark.parametrize("template, told", [("Q: {question}\nA: ", 1), ("Q: {question}\nA:", 0), ("{question}\n", 0)])
def test_prompts_that_end_in_a_space_are_told(world, recwarn, template, told):
    directory, config = world
    some = dataclasses.replace(SETTINGS, template=template)
    suite.read_inputs(some, lambda name: directory / name, config, load_tokenizer(directory / "tokenizer"))
    found = [str(warning.message) for warning in recwarn if "end in a space" in str(warning.message)]
    assert len(found) == told * len(some.multiple_choice)
