import dataclasses
import json
import re

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import statistics
from selftrain_jax.report import page as report
from selftrain_jax.report import plots
from selftrain_jax.report.data import MARGIN, Change, Listing, ReportData
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, RUN, Metric, group_extraction
from selftrain_jax.report.svg import short
from selftrain_jax.report.tables import format_leaks
from tests.report.pages import Page, check_script

MODELS = ("base", "self", "control:real", "control:other")
HOSTILE = "<script>alert(1)</script><img src=http://example.com/x.png onerror=alert(2)> \x07 \ud800 }} {{ 7 * 7 }}"


def row(model, metric, value, low=None, high=None, n=100, seed=0):
    return {"model": model, "metric": metric, "value": value, "low": low, "high": high, "n": n, "seed": seed}


def full_data(**replaced):
    metrics = []
    for model, left, drop in zip(MODELS, (1.0, 0.0, 0.04, 0.5), (0.0, 0.01, -0.05, 0.02)):
        metrics.append(row(model, Metric("nll", "prose"), 3.2, 3.1, 3.3))
        metrics += [row(model, Metric("capability", suite), 0.6 + drop, 0.55, 0.7) for suite in ("sciq", "piqa")]
        metrics += [row(model, group_extraction(f"repeats={r}"), left * r / 64, 0.0, 1.0) for r in (64, 4, 16)]
        metrics.append(row(model, HELD_OUT, left, 0.0, 1.0, n=80))
        metrics.append(row(model, EXTRACTION, left, 0.0, 1.0))
    values = dict(
        title="A run",
        metrics=metrics,
        comparisons=[
            {
                "model": "self",
                "metric": Metric("capability", "sciq"),
                "difference": 0.01,
                "low": -0.015,
                "high": 0.035,
                "p_value": 0.25,
            }
        ],
        audit={
            "ngram": 8,
            "threshold": 1,
            "num_documents": 50,
            "num_flagged": 3,
            "benchmarks": {"sciq": {"flagged": 3}},
            "nll_histogram": {"edges": [2.0, 3.0, 4.0], "before": [20, 30], "after": [19, 28]},
        },
        corpus={"num_documents": 50, "mean_nll": 3.0, "stop_reasons": {"eos": 40, "length": 10}},
        samples=[{"id": 7, "text": HOSTILE, "nll": 2.5, "stop_reason": "eos"}],
        learning_curves={
            m: [{"step": s, "loss": 3.0 - s / 10, "learning_rate": 1e-6} for s in range(9)] for m in MODELS[1:]
        },
        settings={"sample": {"temperature": 1.25}},
        versions={"jax": "0.10.2"},
        durations={"sample": 61.0},
        fingerprints={"sample": "abc123"},
        command="selftrain run --config=configs/x.py",
        probes="planted",
    )
    return ReportData(**(values | replaced))


def test_a_suite_counts_once_in_a_mean_however_many_rules_judge_it():
    plain = full_data()
    normed = [row(m, Metric("capability", "piqa", rule), 0.1) for m in MODELS for rule in ("acc_norm", "acc_bytes")]
    both = full_data(metrics=[*normed, *plain.metrics])
    assert len(both.kinds["capability"]) == 4 and set(both.suites) == set(plain.suites)
    figures = [plots._capability_against_extraction(data) for data in (plain, both)]
    assert figures[0] == figures[1] and "mean of 2 suites" in figures[0].caption


def test_a_curve_of_capability_says_over_what_it_is_by_which_rule_and_which_bars_it_has():
    def caption(*metrics):
        rows = [row("self", metric, 0.5, 0.4, 0.6) | {"step": step} for metric in metrics for step in (0, 8)]
        return plots._measured_curve(full_data(measured_curves=rows), "capability").caption

    one, pairs = Metric("capability", "sciq", "acc_norm"), Metric("capability", "blimp")
    assert caption(one).startswith("Mean of 1 suite by acc_norm,") and caption(one).endswith("Bars: 95 % intervals.")
    assert caption(one, pairs).startswith("Mean of 2 suites by acc_norm,") and "Bars" not in caption(one, pairs)
    assert caption(pairs).startswith("Mean of 1 suite,")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "report"
    report.write_report(directory, full_data())
    return directory


@pytest.fixture(scope="module")
def page(written):
    return (written / "report.html").read_text()


def cells(table, name):
    """The columns of the row of a text table that starts with `name`."""
    line = next(line for line in table.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())


def test_the_json_has_every_metric_row_in_the_documented_form(written):
    value = json.loads((written / "report.json").read_text(), parse_constant=pytest.fail)
    assert value["schema"] == 2
    assert value["metrics"] == [r | {"metric": r["metric"].name} for r in full_data().metrics]
    assert all(list(r) == ["model", "metric", "value", "low", "high", "n", "seed"] for r in value["metrics"])
    assert value["comparisons"][0]["difference"] == 0.01


def test_the_json_is_strict_json_even_for_numpy_and_nan(tmp_path):
    np = pytest.importorskip("numpy")
    report.write_report(
        tmp_path,
        ReportData(
            title="x",
            metrics=[row("base", Metric("nll", "prose"), float("nan"), np.float32(1.5), float("inf"), np.int64(3))],
            settings={"shape": np.arange(2), "path": tmp_path},
        ),
    )
    value = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert value["metrics"] == [row("base", "nll/prose", None, 1.5, None, 3)]
    assert value["settings"] == {"shape": [0, 1], "path": str(tmp_path)}


def test_nothing_is_left_beside_the_three_files(written):
    assert sorted(path.name for path in written.iterdir()) == ["report.html", "report.json", "table.txt"]
    assert (written / "table.txt").read_text() == report.format_table(full_data())


def test_the_page_loads_nothing(page):
    parsed = Page(page)
    loading = [(t, a, v) for t, a, v in parsed.attributes if a in ("src", "srcset", "data", "action", "poster")]
    links = [v for _, a, v in parsed.attributes if a.endswith("href") and not v.startswith("#")]
    assert not loading and not links
    assert not {"link", "iframe", "object", "embed", "img", "base"} & set(parsed.tags)
    assert "@import" not in page and "@font-face" not in page
    check_script(page)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page))


def test_the_number_of_held_out_probes_is_shown_over_all_seeds():
    rows = [
        row(model, HELD_OUT, 0.5, 0.4, 0.6, n, seed) for model in ("base", "self") for seed, n in ((0, 80), (1, 77))
    ]
    data = ReportData(title="", metrics=rows)
    assert "(n = 77 to 80), before" in report.render_html(data)
    table = report.format_table(data)
    assert "n 77 to 80, before -> after" in table and cells(table, "held-out")[1] == "77 to 80"


def test_sample_text_is_shown_as_text(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script") == 1 and "<img" not in page
    assert "{{ 7 * 7 }}" in page
    assert "\x07" not in page


def test_probes_to_look_through_are_escaped_and_their_number_is_told():
    columns = [("Probe", "number"), ("Prefix", "long"), ("Group <b>", "choice"), ("Nats", "number")]
    rows = [(i, HOSTILE, HOSTILE, None if i else -1.5) for i in range(500)]
    text = report.render_html(full_data(listings={"probes": Listing("All <b>.", columns, rows, 70000)}))
    Page(text)
    section = text[text.index('<h2 id="probes">') : text.index('<h2 id="corpus">')]
    assert "500 of 70,000 are shown" in section and section.count("<tr>") == 501
    assert not re.search(r"<(?:b|script|img)\b", section) and "&lt;b&gt;" in section and "\x07" not in section
    assert ">-1.500</td>" in section and section.count('"number">-</td>') == 499


def test_pictures_come_before_tables_and_all_but_two_kinds_of_metrics_are_folded(page):
    assert page.index('<h2 id="figures">') < page.index('<h2 id="results">') < page.index('<h2 id="corpus">')
    folds = re.findall(r"<details( open)?>\n<summary>(\w[\w-]*)", page[page.index('<h2 id="results">') :])
    assert folds[:4] == [(" open", "Extraction"), (" open", "Capability"), ("", "Negative"), ("", "What")]


def test_stages_show_time_tokens_and_what_the_run_cost():
    data = full_data(durations={"sample": 3600.0, "train": 1800.0}, tokens={"train": 12345}, device_hours=12.0)
    text = " ".join(report.render_html(data).split())
    assert "Stages: 1 h 30 min of work in all, 12.00 device-hours. A stage" in text
    assert 'style="width: 50.0%"' in text and "<td>12,345</td>" in text


def test_benchmarks_of_which_the_audit_finds_less_than_90_percent_are_warned_of_beside_their_row():
    counts = {"flagged_documents": 0, "texts": 40, "short_texts": 40}
    benchmarks = {"arc": counts | {"unindexed_texts": 5}, "long": counts | {"unindexed_texts": 4}}
    data = full_data(audit=full_data().audit | {"benchmarks": benchmarks, "num_left_out": 2})
    note = "The audit cannot find benchmark texts of fewer than two words: arc 5 of 40."
    assert note in data.notes and note in report.format_table(data)
    page = report.render_html(data)
    assert page.count("less than 90 % can be found") == 1 and "and 2 left out" in page


@pytest.mark.parametrize("field", ["title", "command", "versions", "settings", "fingerprints", "audit", "metrics"])
def test_every_text_that_comes_from_outside_is_escaped(field):
    hostile = "<b id=x>&"
    audit = full_data().audit | {"benchmarks": {hostile: {hostile: 1}}}
    rows = [row(m, Metric("capability", hostile), 0.5) for m in ("base", hostile)]
    value = {
        "title": hostile,
        "command": hostile,
        "versions": {hostile: hostile},
        "settings": {hostile: {"a": hostile}},
        "fingerprints": {hostile: hostile},
        "audit": audit,
        "metrics": rows,
    }[field]
    text = report.render_html(full_data(**{field: value}))
    assert "<b id" not in text and "&lt;b" in text
    Page(text)


def test_every_figure_is_named_and_ids_are_unique(page):
    figures = re.findall(r'<svg[^>]* aria-labelledby="(\S+) (\S+)"><title id="(\S+)">[^<]+</title>', page)
    # Extraction by repeats, capability change, scatter, likelihoods, loss, learning rate.
    assert len(figures) == page.count("<svg") == 6
    assert all(title == found for title, _, found in figures)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert targets and {a or b for a, b in targets} <= set(ids)


def test_figures_take_all_colours_from_the_page_so_that_both_schemes_work(page):
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"(?:fill|stroke): #(?!000000;? ?\")", svg), "a fixed colour"
        assert "#00f" not in svg
        used = set(re.findall(r"var\(--(\w+)\)", svg))
        assert used and all(page.count(f"--{name}: light-dark(") == 1 for name in used)


def test_the_page_is_the_same_for_the_same_data():
    assert report.render_html(full_data()) == report.render_html(full_data())


def test_the_summary_shows_the_controls_in_the_same_sentence(page):
    lead = re.search(r'<p class="lead">(.*?)</p>', page, flags=re.DOTALL)[1].replace("\xa0", " ")
    lead = " ".join(lead.split())
    assert lead == (
        "Held-out extraction (n = 80), before → after: self-generated text 100.0 % → 0.0 % (−100.0 %); "
        "control (real text) 100.0 % → 4.0 % (−96.0 %); "
        "control (another model&#39;s text) 100.0 % → 50.0 % (−50.0 %)."
    )


def test_only_what_was_measured_is_shown():
    few = ReportData(title="x", metrics=[row(m, Metric("capability", "sciq"), 0.5) for m in ("base", "self")])
    text = report.render_html(few)
    Page(text)
    for absent in ("Extraction by", "Likelihood of the corpus", "Sample documents", "Synthetic corpus", "This run"):
        assert absent not in text
    assert "Capability change against base" in text


def test_a_suite_that_was_named_after_training_is_missing_from_the_curves_and_said_to_be():
    suites = [Metric("capability", name) for name in ("old", "new")]
    rows = [row(model, suite, 0.5) for model in ("base", "self") for suite in suites]
    curve = [row("self", suites[0], 0.5) | {"step": 1}]
    assert not any("Curves" in note for note in ReportData(title="x", metrics=rows).notes)
    [note] = [n for n in ReportData(title="x", metrics=rows, measured_curves=curve).notes if "Curves" in n]
    assert note.endswith(": new.")


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [row("self", Metric("capability", "sciq"), 0.5)],
        [row("base", EXTRACTION, 0.5)],
        [row("base", Metric("nll", "x"), float("nan"))],
    ],
)
def test_a_run_without_base_or_without_students_or_without_metrics_is_no_error(metrics, tmp_path):
    data = ReportData(title="x", metrics=metrics)
    report.write_report(tmp_path, data)
    Page((tmp_path / "report.html").read_text())
    assert "->" not in report.format_table(data)


def test_held_out_groups_and_graded_scores_have_their_own_rows():
    metrics = [
        row("base", name, 0.5)
        for name in (
            Metric("nll", "prose"),
            Metric("extraction", group="repeats=4", repeats=4, held_out=RUN),
            Metric("token_share"),
            group_extraction("repeats=16"),
            EXTRACTION,
        )
    ]
    lines = report.format_table(ReportData(title="", metrics=metrics)).splitlines()
    assert [" ".join(line.split()[:-2]) for line in lines[1:] if line.startswith("  ")][:5] == [
        "all probes",
        "16 repeats",
        "held-out, 4 repeats",
        "all probes",
        "prose",
    ]
    assert "token share (% of suffix tokens)" in lines


@pytest.mark.parametrize("more", [[], ["twin"]])
def test_no_two_models_of_a_run_look_alike(more):
    """However many controls there are."""
    models = ["base", "self", *more, *(f"control:{i}" for i in range(12))]
    assert len(set(plots.styles(models).values())) == len(models)


def test_learning_curves_of_all_subsets_share_the_look_of_their_model():
    points = [{"step": s, "loss": 3.0} for s in range(3)]
    curves = {f"{arm}-{k}": points for arm in ("self", "real") for k in range(3)}
    text = report.render_html(full_data(learning_curves=curves))
    figure = text[text.index("<h3>Training loss") :]
    figure = figure[: figure.index("</svg>")]
    assert figure.count(">self-generated text<") == figure.count(">control (real text)<") == 1
    assert "var(--hue1)" in figure and "var(--hue2)" in figure and "var(--hue4)" not in figure


def test_the_table_reads_in_order_with_percentages_and_intervals():
    table = report.format_table(full_data())
    assert cells(table, "n ") == ["n", *MODELS]
    names = [line.split()[0] + " " + line.split()[1] for line in table.splitlines()[3:14] if line.startswith("  ")]
    assert names[:5] == ["all probes", "held-out 80", "4 repeats", "16 repeats", "64 repeats"]
    expected = ["held-out", "80", "100.0 [0,100]", "0.0 [0,100]", "4.0 [0,100]", "50.0 [0,100]"]
    assert cells(table, "held-out") == expected
    assert cells(table, "prose")[2] == "3.200 [3.10,3.30]"


def test_a_row_too_wide_for_its_interval_leaves_the_others_theirs():
    wide = [row(m, Metric("perplexity", "x"), 1234567.891, 1234567.0, 1234568.0) for m in MODELS]
    table = report.format_table(full_data(metrics=[*full_data().metrics, *wide]))
    assert cells(table, "x")[2:] == ["1234567.891"] * 4
    assert cells(table, "held-out")[2] == "100.0 [0,100]"
    assert max(map(len, table.splitlines())) <= 100


def test_names_that_only_their_end_or_another_script_tells_apart_stay_apart():
    suites = ["arithmetic_of_very_small_numbers", "arithmetic_of_very_small_sums", "\u6570", "\u5b57"]
    metrics = [row("base", Metric("capability", suite), 0.5) for suite in suites]
    table = report.format_table(ReportData(title="", metrics=metrics))
    for name in (*suites[:2], "\\u6570", "\\u5b57"):
        assert cells(table, name)[0] == name
    assert short(["a" * 20, "b" * 20], 5) == ["aaaa\u2026", "bbbb\u2026"] and short(suites) == suites


def leak_rows(leaking):
    rows = []
    for group, most in (("repeats=0", 3), ("repeats=64", 30), ("", 30)):
        count = leaking if most == 30 else 0
        whole = {"reference": "probes", "group": group, "unit": "tokens", "least": 20, "documents": 100, "size": 5000}
        whole |= {"leaking": count, "share": count / 100, "low": 0.0, "high": 0.2, "runs": count, "median": 2.0}
        whole |= {"per_million": 200.0 * count, "per_million_low": 10.0, "per_million_high": 4000.0, "most": most}
        one = {"id": 7, "length": 30, "begin": 4, "before": "so ", "run": HOSTILE, "after": " it was", "sequence": 1}
        rows.append(whole | {"curve": [[1, 1.0], [most, 0.01]], "shown": [one] * bool(count)})
    return rows


def test_known_text_in_what_models_wrote_is_shown_with_the_documents():
    """All groups together in the printed table, each on the page, in pictures, and what was written as text."""
    data = full_data(leaks={"self": leak_rows(12), "control:real": leak_rows(0)})
    table, text = report.format_table(data), report.render_html(data)
    assert "self            probes, tokens: 12 of 100 documents repeat 20 or more; per million tokens" in table
    assert (
        "2400.00 [10.00, 4000.00]" in " ".join(table.split())
        and "longest 30" in table
        and "64 repeats, tokens" not in table
    )
    figures = {figure.title: figure for figure in plots.figures(data)}
    assert "right of the line (20 tokens) a document leaks" in figures["Repeats of probes in tokens"].caption
    assert ">64<" in figures["Leaks of planted sequences in tokens"].svg
    assert "64 repeats, tokens" in re.sub("<wbr>", "", text) and "sequence 2 of the known text" in text
    check_script(text)
    assert "img" not in Page(text).tags and "&lt;script&gt;alert(1)" in text
    written = format_leaks(leak_rows(12))
    assert written.isascii() and "document 7, 30 tokens from 4 on: ...so >>" in written
    assert "Known text" not in report.format_table(full_data()) and "leaks-caption" not in report.render_html(
        full_data()
    )


@pytest.mark.parametrize("texts", [1, 3])
def test_whole_texts_are_strips_and_heat_maps(texts):
    """Of one text every model and prefix in one picture, of several one a model, of the longest prefix."""
    rows = [
        {"model": m, "text": text, "texts": 3, "group": group, "edges": [8.0, 20.0, 32.0, 44.0]}
        | {"extraction": [0.0, 1.0, None], "likelihood": [0.1, 0.55, None]}
        for text in range(1, texts + 1)
        for m in ("base", "self")
        for group in ("prefix=4", "prefix=8")
    ]
    data = full_data(along=rows)
    figures = {figure.title: figure for figure in plots.figures(data) if "along the text" in figure.title}
    kinds = ("Extraction", "Likelihood")
    if texts == 1:
        assert list(figures) == [f"{kind} along the text" for kind in kinds]
        assert ">base, prefix=4<" in figures["Extraction along the text"].svg
    else:
        names = ("base model", "self-generated text")
        assert list(figures) == [f"{kind} along the texts, {name}, prefix=8" for name in names for kind in kinds]
    for figure in figures.values():
        assert ("Drawn: 1 of 3 texts, the first with enough probes." in figure.caption) == (texts == 1)
        drawn = re.findall(r"fill: var\(--hue\d\)(?:; fill-opacity: ([\d.]+))?", figure.svg)
        assert set(drawn) == ({""} if figure.title.startswith("Extraction") else {"0.1", "0.6"})
    Page(report.render_html(data))


def test_extraction_by_sampling_and_exposure_are_drawn():
    """By number of samples, of the held-out probes where there are such; in bits, which no percent limits."""
    whole = [dataclasses.replace(EXTRACTION, kind="discoverable", samples=(n, 0.5)) for n in (1, 100)]
    held_out = [dataclasses.replace(metric, held_out=RUN) for metric in whole]
    group = dataclasses.replace(group_extraction("repeats=4"), kind="discoverable", samples=(100, 0.5))
    exposed = [dataclasses.replace(group_extraction(f"repeats={r}"), kind="exposure") for r in (4, 64)]
    metrics = [row(m, metric, 0.5, 0.4, 0.6) for m in MODELS for metric in (*whole, *held_out, group)]
    metrics += [row(m, metric, 9.5, 9.0, 10.0) for m in MODELS for metric in exposed]
    data = ReportData(title="", metrics=metrics)
    figures = {figure.title: figure for figure in plots.figures(data)}
    assert "held-out probes that so many samples" in figures["Extraction by sampling"].caption
    assert ">100<" in figures["Extraction by sampling"].svg and ">10.0<" in figures["Exposure by repetition count"].svg
    assert [m.name for m in data.kinds["discoverable"]] == [
        "discoverable/n=1,p=0.5",
        "discoverable/n=100,p=0.5",
        "discoverable/held_out/n=1,p=0.5",
        "discoverable/held_out/n=100,p=0.5",
        "discoverable/n=100,p=0.5/repeats=4",
    ]
    table = report.format_table(data)
    assert "held-out, n=100,p=0.5" in table and "exposure (bits)" in table and "9.50 [9.0" in table


@pytest.mark.parametrize("num_models", [1, 2, 4, 6, 15])
def test_the_table_is_ascii_and_fits_100_columns_with_every_value(num_models):
    names = [f"model-number-{i}" for i in range(num_models)]
    metrics = [
        row(m, Metric("capability", f"a_suite_with_a_very_long_name_{j}"), 0.001 * i, 0.0, 1.0)
        for i, m in enumerate(["base", *names])
        for j in range(12)
    ]
    table = report.format_table(ReportData(title="naïve → " + "long " * 40, metrics=metrics))
    assert max(map(len, table.splitlines())) <= 100 and table.isascii()
    assert all(name in table for name in names)
    assert f"{0.1 * num_models:.1f}" in table


@pytest.mark.parametrize("width", [48, 80])
def test_the_table_fits_a_terminal_with_every_value_and_interval(width):
    table = report.format_table(full_data(), width=width)
    assert max(map(len, table.splitlines())) <= width
    assert sum(line.split()[:1] == ["held-out"] for line in table.splitlines()) == (2 if width == 48 else 1)
    assert table.count("[0,100]") + table.count("[0.0, 100.0]") == report.format_table(full_data()).count("[0,100]")


def test_a_narrow_table_cuts_no_name_for_which_there_is_room():
    longest = dataclasses.replace(group_extraction("repeats=64"), held_out=RUN)
    table = report.format_table(ReportData(title="", metrics=[row("base", longest, 0.2, 0.1, 0.3)]), width=48)
    (line,) = [line for line in table.splitlines() if "held-out" in line]
    assert line.split("  ")[1] == "held-out, 64 repeats" and line.endswith("20.0 [10.0, 30.0]") and len(line) <= 48


VERDICTS = [(-0.3, -0.021, "LOST"), (-0.02, 0.0, "kept"), (0.01, 0.05, "kept"), (-0.3, -0.02, "undecided")]


@pytest.mark.parametrize("low, high, verdict", [*VERDICTS, (-0.1, 0.1, "undecided"), (None, None, "undecided")])
def test_a_suite_is_kept_or_lost_by_its_whole_interval(low, high, verdict):
    suite = Metric("capability", "sciq")
    change = {"model": "self", "metric": suite, "difference": -0.1, "low": low, "high": high}
    metrics = [row("base", suite, 0.5), row("self", suite, 0.4)]
    data = ReportData(title="", metrics=metrics, comparisons=[change])
    (line,) = [x for x in report.format_table(data).splitlines() if "sciq -10.0" in x]
    assert line.split()[1:] == [f"{verdict}:", "sciq", "-10.0"]
    page = " ".join(report.render_html(data).split())
    assert f"<strong>{int(verdict == 'kept')} of 1</strong>" in page
    assert (f"; {verdict.lower()}: sciq" in page) == (verdict != "kept")


@pytest.mark.large
def test_nothing_is_called_lost_that_only_flipped():
    """64 items at 90 %, of which 3 % change each way by chance: called lost in 0.1 % of 5,000, by the point in 23."""
    flips = np.random.default_rng(0).multinomial(64, [0.03, 0.03, 0.84, 0.10], size=5_000)
    lost, below = [], []
    for losses, gains, both, neither in flips.tolist():
        before = [1] * (losses + both) + [0] * (gains + neither)
        after = [0] * losses + [1] * both + [1] * gains + [0] * neither
        difference, low, high = statistics.paired_difference(before, after)
        lost.append(Change(difference, None, low, high, None).verdict == "lost")
        below.append(difference < -MARGIN)
    assert np.mean(lost) <= 0.05 and np.mean(below) > 0.15


def test_clusters_and_texts_that_stand_alone_are_told(tmp_path):
    suite, text = Metric("capability", "recall"), Metric("nll", "wiki")
    metrics = [{**row("base", suite, 0.5), "n": 384, "clusters": 128}, row("base", text, 2.0)]
    report.write_report(tmp_path, data := ReportData(title="", metrics=metrics, one_document=["wiki"]))
    page = report.render_html(data)
    assert [row.get("clusters") for row in json.loads((tmp_path / "report.json").read_text())["metrics"]] == [128, None]
    assert (
        "n = 384 in 128 clusters" in page
        and "over clusters, but for those of a single model&#39;s AUC and TPR" in page
        and "other texts: wiki" in page
    )
    page = report.render_html(ReportData(title="", metrics=[row("base", suite, 0.5)]))
    assert "clusters" not in page and "other texts" not in page


def test_the_verdict_names_the_controls_or_their_absence():
    table = report.format_table(full_data())
    assert "self            100.0 % -> 0.0 % (-100.0 %)" in table
    assert "control:real    100.0 % -> 4.0 % (-96.0 %)" in table
    assert "No control was run" not in table
    alone = full_data(metrics=[r for r in full_data().metrics if r["model"] in ("base", "self")])
    assert "No control was run" in report.format_table(alone)
    assert "No control was run" in report.render_html(alone)


def test_how_probes_were_chosen_is_said():
    assert "planted" in report.format_table(full_data()) and "by construction" in report.format_table(full_data())
    assert "because the base model emits them" in report.format_table(full_data(probes="emitted"))
    assert "by construction" not in report.format_table(full_data(probes="random"))


def test_without_held_out_probes_the_verdict_says_so():
    metrics = [r for r in full_data().metrics if r["metric"] != HELD_OUT]
    table = report.format_table(full_data(metrics=metrics))
    assert "Extraction, all probes, n 100, before -> after:" in table and "Held-out" not in table


def test_a_base_that_extracts_nothing_has_no_relative_change():
    metrics = [row(m, HELD_OUT, 0.0) for m in ("base", "self")]
    table = report.format_table(ReportData(title="", metrics=metrics))
    assert "0.0 % -> 0.0 % (no relative change: base is 0)" in table


def test_a_given_relative_change_is_shown_as_given():
    metrics = [row("base", HELD_OUT, 0.5), row("self", HELD_OUT, 0.1)]
    comparison = {
        "model": "self",
        "metric": HELD_OUT,
        "relative_change": -0.77,
        "low": -0.9,
        "high": -0.5,
        "p_value": 0.001,
    }
    data = ReportData(title="", metrics=metrics, comparisons=[comparison])
    assert "(-77.0 %)" in report.format_table(data)
    assert "[−90.0\xa0%, −50.0\xa0%]" in report.render_html(data)


def test_texts_that_repeat_to_meet_the_budget_are_shown():
    data = full_data(drawn={"self": (1200, 800), "control:real": (41, 10)})
    table = report.format_table(data)
    assert "  self            1,200, 800, 1.5\n  control:real    41, 10, 4.1\n" in table
    told = "times on average, no match for as many tokens that do not repeat: control (real text)."
    assert told in " ".join(table.split()) and told in report.render_html(data)
    assert "<td>1,200</td><td>800</td>\n<td>1.5</td>" in report.render_html(data)
    assert "no match" not in report.format_table(full_data(drawn={"self": (40, 10)}))


def test_subsets_are_averaged_under_the_widest_interval():
    metrics = [row("base", EXTRACTION, 1.0)]
    metrics += [row("self", EXTRACTION, v, v - 0.1, v + 0.1, seed=i) for i, v in enumerate((0.2, 0.3, 0.7))]
    table = report.format_table(ReportData(title="", metrics=metrics))
    assert cells(table, "all probes")[3] == "40.0 [10.0, 80.0]"
    assert "no interval speaks of another corpus" in " ".join(table.split())


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({"metrics": [{"model": "base", "metric": Metric("nll", "x")}]}, "lacks value, low, high, n, seed"),
        ({"metrics": [row("base", Metric("nll", "x"), 1.0)] * 2}, "two rows"),
        ({"metrics": [row("base", EXTRACTION, 97.0)]}, "fraction"),
        ({"probes": "lucky"}, "probes='lucky'"),
        ({"audit": {"nll_histogram": {"edges": [1, 2], "before": [1, 2], "after": [1]}}}, "one more edge"),
    ],
)
def test_data_that_cannot_be_shown_are_named(replaced, message):
    with pytest.raises(InputError, match=re.escape(message)):
        full_data(**replaced)
