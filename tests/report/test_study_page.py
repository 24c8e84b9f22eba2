import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from selftrain_jax.report import page as report
from selftrain_jax.report import study_plots
from selftrain_jax.report.metric import CAPABILITY, LEFT_PROBES, Metric
from selftrain_jax.report.study_data import RELATIONS
from selftrain_jax.study.replicates import ABOVE_CHANCE
from tests.report.pages import Page, check_script
from tests.report.study_data import DATA, STUDENTS, empty_data, full_data, minimal_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a written study, by the name of its data."""
    written = {}

    def write(name):
        if name not in written:
            written[name] = tmp_path_factory.mktemp("study") / "report"
            report.write_study_report(written[name], DATA[name]())
        return written[name]

    return write


def read_csv(folder, name):
    with open(folder / "tables" / f"{name}.csv", newline="") as f:
        return list(csv.DictReader(f))


def text_of(value):
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_the_json_holds_everything(folder):
    value = json.loads((folder("full") / "study.json").read_text(), parse_constant=pytest.fail)
    assert value.pop("schema") == 2
    assert value == json.loads(json.dumps(vars(full_data()), default=lambda metric: metric.name))


def test_numpy_and_nan_become_plain_numbers_and_null(tmp_path):
    row = minimal_data().utility[0] | {"value": np.float64(0.25), "low": float("nan"), "significant": np.bool_(False)}
    report.write_study_report(tmp_path, empty_data(utility=[row]))
    found = json.loads((tmp_path / "study.json").read_text(), parse_constant=pytest.fail)["utility"]
    assert found == [row | {"value": 0.25, "low": None, "significant": False}]
    assert read_csv(tmp_path, "utility")[0]["value"] == "0.25"


@pytest.mark.parametrize("name", ["full", "minimal", "hostile"])
@pytest.mark.parametrize(
    "table",
    [
        *("utility", "results", "proxies", "correlations", "selectivity", "curves", "generations", "by_relation"),
        *("contrasts", "contamination", "matched", "components"),
    ],
)
def test_each_csv_equals_its_rows(folder, name, table):
    rows = getattr(DATA[name](), table)
    assert rows
    assert read_csv(folder(name), table) == [{k: text_of(v) for k, v in row.items()} for row in rows]


def test_the_csv_of_verdicts_has_a_row_for_each_piece_of_evidence(folder):
    rows = read_csv(folder("full"), "verdicts")
    expected = [
        (str(v["finding"]), v["verdict"], e["name"], text_of(e["low"]))
        for v in (*full_data().verdicts, *full_data().older_verdicts)
        for e in v["evidence"]
    ]
    assert [(r["finding"], r["verdict"], r["name"], r["low"]) for r in rows] == expected
    assert (rows[0]["rules"], rows[-1]["rules"]) == ("2 (2026-11-26)", "1 (2026-11-23)")
    assert (rows[0]["num_replicates"], rows[0]["detectable"], rows[0]["p_value"]) == ("3", "0.785", "0.0123")
    assert [r["reason"] for r in read_csv(folder("minimal"), "verdicts")] == ["one seed"]


def test_page_and_table_name_the_rules_and_show_what_older_ones_say(folder):
    page, table = ((folder("full") / name).read_text() for name in ("study.html", "table.txt"))
    assert "Rules: version 2 (2026-11-26)" in page and "Rules: version 2 (2026-11-26)" in table
    older = page[page.index("The same by older rules") :].split("</table>")[0]
    assert older.count("1 (2026-11-23)") == 3 and "<td>reproduced</td>" in older
    assert "By version 1 (2026-11-23): 1: reproduced; 2: reproduced; 3: reproduced." in table


def test_a_verdict_shows_replicates_power_and_p_beside_its_figures(folder):
    behind = "n = 3, p = 0.012, 80 % power at 0.79"
    assert behind in (folder("full") / "study.html").read_text().replace("\xa0", " ")
    assert f"self minus same lineage: +0.90 points [+0.30, +1.50] ({behind})" in " ".join(
        (folder("full") / "table.txt").read_text().split()
    )


def test_relations_are_compared_within_students(folder):
    page = (folder("full") / "study.html").read_text()
    figure = page[page.index("<h3>Within students</h3>") :].split("</figure>")[0]
    assert figure.count(">self minus ") == 4 and "same family," in figure
    assert re.search(
        r"self minus same lineage +\+0\.80 +\[-0\.20, \+1\.80\] +3", (folder("full") / "table.txt").read_text()
    )


def test_the_files_are_the_same_set_whatever_was_measured(folder):
    names = [
        sorted(str(p.relative_to(folder(n))) for p in folder(n).rglob("*") if p.is_file()) for n in ("full", "empty")
    ]
    assert names[0] == names[1] and len(names[0]) == 3 + 16 + 3


@pytest.mark.parametrize("name", DATA)
def test_latex_has_as_many_cells_in_every_row_and_no_bare_special_character(folder, name):
    for path in sorted((folder(name) / "tables").glob("*.tex")):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("%")]
        if not lines:
            assert name in ("empty", "minimal")
            continue
        columns = re.fullmatch(r"\\begin\{tabular\}\{([lcr]+)\}", lines[0])[1]
        assert [lines[1], lines[-2], lines[-1]] == [r"\toprule", r"\bottomrule", r"\end{tabular}"]
        for line in lines[2:-2]:
            if line.startswith(r"\midrule"):
                continue
            assert line.endswith(r" \\") and not line.startswith(("[", "*"))
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
            math_free = re.sub(r"(?<!\\)\$.*?(?<!\\)\$", "", line)
            assert not re.search(r"(?<!\\)[%#_$^~<>|]", math_free), line
            assert len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line))


def test_latex_values_are_those_of_the_data(folder):
    text = (folder("full") / "tables" / "utility.tex").read_text()
    for row in full_data().utility:
        value = f"{100 * row['value']:+.2f}" + "^{*}" * row["significant"]
        assert rf"${value}$ {{\footnotesize $[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]$}}" in text
    assert "A\\_small" in text
    assert text.count("&  ") == 1, "the pair that is missing is blank"
    assert r"Mean nll" not in text
    assert all(f"% {note}" in text for note in full_data().notes), "such as that units are not done"
    assert r"$-0.70$ {\footnotesize $[-0.90, -0.50]$}" in (folder("full") / "tables" / "correlations.tex").read_text()


@pytest.mark.parametrize("name", DATA)
def test_the_page_is_well_formed_and_loads_nothing(folder, name):
    page = (folder(name) / "study.html").read_text()
    parsed = Page(page)
    check_script(page)
    assert not {"link", "iframe", "object", "embed", "img", "base", "b"} & set(parsed.tags)
    assert not [
        a for _, a, _ in parsed.attributes if a in ("src", "srcset", "data", "action", "poster") or a[:2] == "on"
    ]
    links = [v for t, a, v in parsed.attributes if a.endswith("href") and not v.startswith("#")]
    assert not [v for v in links if ":" in v or v.startswith("/")]
    assert "@import" not in page and "@font-face" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page))
    ids = [v for _, a, v in parsed.attributes if a == "id"]
    assert len(ids) == len(set(ids))
    used = {v[1:] for _, a, v in parsed.attributes if a.endswith("href") and v.startswith("#")}
    used |= {x for _, a, v in parsed.attributes if a == "aria-labelledby" for x in v.split()}
    assert used <= set(ids)


def test_long_tables_are_folded_and_can_be_browsed(folder):
    page = (folder("full") / "study.html").read_text()
    long, short = full_data().selectivity, full_data().components
    assert len(long) > 12 >= len(short) > 0
    for rows, name in ((long, "selectivity"), (short, "components")):
        table = re.search(rf'(\S+)\n+<div [^>]*aria-labelledby="{name}-caption">\n<table class="(.*?)"', page)
        assert ("browse" in table[2]) == (table[1] == "rows</summary>") == (rows is long)


def test_hostile_names_are_shown_as_text(folder):
    page = (folder("hostile") / "study.html").read_text()
    assert "<b>" not in page and page.count("&lt;b&gt;`&amp;") > 100


@pytest.mark.parametrize("target", ["javascript:alert(1)", "https://example.com/", "//example.com", "\\\\host\\x"])
def test_a_run_cannot_link_out_of_the_study(target):
    row = {"run": "r", "student": "s", "condition": "", "seed": 0, "report": target}
    links = [v for _, a, v in Page(report.render_study(empty_data(runs=[row]))).attributes if a == "href"]
    assert not [v for v in links if ":" in v or v.startswith(("/", "\\"))]


def test_the_sections_come_in_order_and_empty_ones_do_not_come(folder):
    def sections(name):
        return re.findall(r'<h2 id="(\w+)"', (folder(name) / "study.html").read_text())

    assert sections("full") == [
        "findings",
        "utility",
        "relations",
        "proxies",
        "curves",
        "generations",
        "contamination",
        "matched",
        "components",
        "selectivity",
        "results",
        "runs",
        "settings",
        "costs",
        "versions",
        "notes",
    ]
    assert sections("empty") == []


def test_the_heat_map_has_every_pair_sources_by_relation_and_controls_last(folder):
    page = (folder("full") / "study.html").read_text()
    table = re.search(r'<table class="matrix heat">.*?</table>', page, flags=re.DOTALL)[0].replace("<wbr>", "")
    assert re.findall(r'<th scope="row">(.*?)<[/s]', table) == [
        "A_small",
        "A_large",
        "B",
        "A_other",
        "real",
        "shuffled",
    ]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["Trained on", *STUDENTS[:2], "B"]
    assert table.count("<td></td>") == 1
    assert table.count('class="own"') == 3
    for row in full_data().utility:
        shown = f"{100 * row['value']:+.2f}{'*' * row['significant']}".replace("-", "\N{MINUS SIGN}")
        assert f"<strong>{shown}</strong>" in table


def test_there_is_a_heat_map_for_each_condition_on_one_scale(folder):
    page = (folder("conditions") / "study.html").read_text()
    assert page.count('<table class="matrix heat">') == 2
    shades = [float(x) for x in re.findall(r'style="background: .*var\(--(?:gain|loss)\) ([\d.]+)%', page)]
    assert max(shades) == 60 and shades.count(60) == 1, "the strongest colour is the largest value of the page"


def contrast(a, b):
    def luminance(colour):
        c = [(x / 255 / 12.92) if x / 255 <= 0.03928 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in colour]
        return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sign", ["gain", "loss"])
def test_values_are_readable_on_the_strongest_colour_of_the_heat_map(folder, scheme, sign):
    page = (folder("full") / "study.html").read_text()
    paper, ink, tone = (
        [
            int(x, 16)
            for x in re.findall("..", re.findall(rf"--{n}: light-dark\(#(\w{{6}}), #(\w{{6}})\)", page)[0][scheme])
        ]
        for n in ("paper", "ink", sign)
    )
    for share in (0.0, 0.3, 0.6):
        cell = [share * t + (1 - share) * p for t, p in zip(tone, paper)]
        assert contrast(cell, ink) >= 4.5, "WCAG 2.1, 1.4.3"


def test_figures_are_named_and_take_all_colours_from_the_page(folder):
    page = (folder("full") / "study.html").read_text()
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    # Contrasts; a panel per proxy; four per student; a panel per metric of the generations.
    assert len(figures) == 1 + 3 + 4 * 3 + 4
    for svg in figures:
        assert re.match(r'<svg[^>]* role="img" aria-labelledby="(\S+)-title \1-desc"><title id="\1-title">[^<]+</', svg)
        assert not re.search(r"(?:fill|stroke): #(?!000000;? ?\")", svg), "a fixed colour"
        assert "#00f" not in svg


def test_a_map_has_a_cell_for_each_temperature_and_learning_rate():
    """Changes with their sign, in bold where the interval excludes 0; shares that are left have neither."""
    cells = {(0.5, 1e-4): (-0.02, -0.03, -0.01), (None, 1e-4): (0.01, -0.01, 0.03), (1.0, 1e-2): (0.04, 0.03, 0.05)}
    rows = [
        {"student": "A", "tokens": 5, "learning_rate": rate, "temperature": temperature, "metric": metric}
        | {"value": value, "low": low, "high": high, "num_replicates": 3}
        for metric in (CAPABILITY, Metric("nll", "prose"), LEFT_PROBES)
        for (temperature, rate), (value, low, high) in cells.items()
    ]
    data = empty_data(grid=rows)
    maps = study_plots.maps(data)
    assert [figure.title for figure in maps] == ["A: capability", "A: NLL, prose", f"A: {LEFT_PROBES.title}"]
    minus = "\N{MINUS SIGN}"
    shown = [re.findall(r"<text ([^>]*)>([^<]+)</text>", figure.svg) for figure in maps]
    numbers = [[(text, "700" in style) for style, text in of if text[0] in "+" + minus] for of in shown]
    assert numbers[0] == [(f"{minus}2.0", True), ("+1.0", False), ("+4.0", True)]
    assert numbers[1] == [(f"{minus}0.020", True), ("+0.010", False), ("+0.040", True)]
    assert [text for _, text in shown[2]][-1] == "4.0" and not any("700" in style for style, _ in shown[2])
    # What rises is good of capability, bad of likelihood.
    better = [len(re.findall(r"fill: var\(--hue1\)", figure.svg)) for figure in maps]
    assert better == [2, 1, 0]
    page = re.sub(r"(<[^>]+>|\s)+", " ", report.render_study(data))
    assert f"A capability 5 0.0001 0.5 {minus}2.0 [{minus}3.0, {minus}1.0] 3 " in page
    assert f"A capability 5 0.0001 real text +1.0 [{minus}1.0, +3.0] 3 " in page


def test_a_proxy_panel_is_titled_with_its_correlation(folder):
    page = (folder("full") / "study.html").read_text()
    titles = [title.replace("\xa0", " ").replace("\N{MINUS SIGN}", "-") for title in re.findall("<h3>(.*?)</h3>", page)]
    assert "kl to student: ρ = -0.70 [-0.90, -0.50]" in titles


def test_captions_say_over_what_curves_are_averaged():
    """Two trainings of one seed are no seeds, nor are they one."""
    rows = [{"seed": seed, "subset": subset} for seed in (0, 1) for subset in (0, 1)]
    found = [study_plots._mean(of).partition(";")[0] for of in (rows, rows[:2], rows[::2], rows[:1], [{"seed": 0}])]
    assert found == ["Mean over seeds and subsets", "Mean over subsets", "Mean over seeds", "One seed.", "One seed."]


def test_capability_above_chance_is_a_share_in_percent_beside_the_others():
    row = full_data().results[0] | {"metric": ABOVE_CHANCE, "before": 0.25, "after": -0.0125}
    page = report.render_study(dataclasses.replace(full_data(), results=[row]))
    cells = page[page.index(">capability above chance</th>") :].split("</tr>")[0]
    assert "\N{MINUS SIGN}1.2<" in cells and "25.0<" in cells


def test_what_was_not_trained_is_not_called_trained():
    data, other = full_data(), {"arm": "none", "relation": "untouched, evaluated again"}
    results, utility = ([row | other for row in of if row["arm"] == "real"] for of in (data.results, data.utility))
    data = dataclasses.replace(data, results=[*data.results, *results], utility=[*data.utility, *utility])
    page = report.render_study(data)
    assert "compared with controls (real text; shuffled real text; untouched, evaluated again)" in page
    assert "<summary>B: 15 trained models, 3 evaluations without training</summary>" in page


def test_the_curves_of_a_student_show_every_arm_and_its_own_repetition_groups(folder):
    page = (folder("full") / "study.html").read_text()
    figure = page[page.index("<h3>A_small: extraction, held-out over training</h3>") :].split("</figure>")[0]
    for name in ("A_small (self)", "A_large (same lineage)", "B (other family)", "real", "shuffled"):
        assert f">{name}</text>" in figure
    groups = page[page.index("<h3>A_small: held-out extraction by repetition</h3>") :].split("</figure>")[0]
    assert ">4 repeats</text>" in groups and ">16 repeats</text>" in groups and "Trained on A_small (self)" in groups


def test_missing_intervals_and_values_are_left_out(folder):
    for name in ("minimal", "one seed"):
        page, table = ((folder(name) / n).read_text() for n in ("study.html", "table.txt"))
        assert "None" not in page and "None" not in table and "nan" not in table
    page = (folder("minimal") / "study.html").read_text()
    assert "<strong>+1.00</strong>" in page
    assert "Brackets" not in page and "Bars" not in page, "no word of intervals that are not there"
    assert "over 3 seeds" not in (folder("one seed") / "study.html").read_text()


@pytest.mark.parametrize("name", DATA)
def test_the_terminal_table_is_ascii_and_fits_100_columns(folder, name):
    table = (folder(name) / "table.txt").read_text()
    assert table == report.format_study(DATA[name]())
    assert table.isascii() and max(map(len, table.splitlines())) <= 100


def test_the_terminal_table_reads_verdicts_first_then_utility_correlations_selectivity(folder):
    table = (folder("full") / "table.txt").read_text()
    parts = ("REPRODUCED ", "NOT REPRODUCED", "INCONCLUSIVE", "Utility:", "Spearman", "Selectivity")
    order = [table.index(part) for part in parts]
    assert order == sorted(order)
    row = full_data().utility[0]
    assert re.search(rf"A_small +A_small +self +\{100 * row['value']:+.2f}\* +\[\+\d\.\d\d, \+\d\.\d\d\] +3\n", table)
    assert re.search(r"mean nll +intrinsic +within students +-0\.30 +\[-0\.50, -0\.10\] +p = 0\.250 +4\n", table)


def test_long_names_lose_their_middle_not_the_temperature_at_their_end():
    row = full_data().utility[0]
    rows = [
        row
        | {
            "student": "a-student-with-quite-a-name-70m",
            "arm": f"a-source-with-quite-a-name-160m t={t}",
            "relation": RELATIONS[2],
        }
        for t in (0.8, 1.25)
    ]
    table = report.format_study(empty_data(utility=rows))
    assert max(map(len, table.splitlines())) <= 100
    assert "t=0.8 " in table and "t=1.25 " in table


@pytest.mark.parametrize("width", [48, 80, 100])
def test_rows_of_the_terminal_table_stay_apart(width):
    """By their names alone: a row whose condition lost its learning rate would be anyone's."""
    row = full_data().utility[0]
    students = [f"pythia-410m-of-seed-{seed}-deduped" for seed in (1, 2)]
    conditions = [f"100,000 tokens, learning rate {rate}e-05" for rate in (1, 3, 10)]
    rows = [row | {"student": s, "arm": s, "condition": c} for s in students for c in conditions]
    table = report.format_study(empty_data(utility=rows), width)
    assert max(map(len, table.splitlines())) <= width
    shown = [" ".join(row.split()) for row in re.split(r"\n  (?=pythia)|\n\n", table) if row.startswith("pythia")]
    assert len(shown) == len(set(shown)) == 2 * 3


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_names_that_differ_in_their_middle_stay_different(width):
    row, kinds = full_data().utility[0], ("a", "b", "c")
    names = [f"organization-of-models/model-70m-{kind}-deduplicated-revision-143000" for kind in kinds]
    rows = [row | {"student": s, "arm": a, "relation": RELATIONS[2]} for s in names for a in names]
    text = report.format_study(empty_data(utility=rows), width)
    assert max(map(len, text.splitlines())) <= width
    shown = re.findall(r"[.-]([abc])-", re.sub(r"\s", "", text))
    assert shown == [kind for s in kinds for a in kinds for kind in (s, a)]


def test_the_same_data_give_the_same_bytes(folder, tmp_path):
    report.write_study_report(tmp_path, DATA["full"]())
    for path in folder("full").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(folder("full"))).read_bytes()
