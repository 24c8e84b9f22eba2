"""A finished run as tables, and beside another one."""

import json
import shutil

import pandas as pd
import pytest

ALL = ("lab", "sample", "audit", "subset", "train", "evaluate", "report")


def test_a_run_becomes_tables_that_say_what_its_report_says(selftrain, finished, tmp_path):
    workdir, paths = finished[0], [tmp_path / "items.parquet", tmp_path / "metrics.csv"]
    for command, path in zip(("items", "metrics"), paths):
        done = selftrain.command(command, workdir, f"--out={path}")
        assert done.returncode == 0 and str(path) in done.stdout, done.stderr
    items, metrics = pd.read_parquet(paths[0]), pd.read_csv(paths[1])
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert len(metrics) == len(report["metrics"])
    models = {"base": "base", "self": "self-0", "control:real": "real-0", "control:other": "other-0"}
    assert set(items.model) == set(models.values())
    compared = 0
    for row in report["metrics"]:
        rows, about = items[items.model == models[row["model"]]], report["figures"][row["metric"]]
        if about["kind"] == "capability":
            found = rows[rows.suite == about["item"]][about["rule"]]
        elif row["metric"] in ("extraction/all", "extraction/held_out"):
            probes = rows[rows.kind == "probes"]
            found = probes.exact if about["held_out"] is None else probes[probes.held_out.eq(True)].exact
        elif about["kind"] == "contaminated":
            assert rows[rows.suite == about["item"]].contaminated.sum() == row["value"]
            continue
        else:
            continue
        assert found.astype(float).mean() == pytest.approx(row["value"]) and len(found) == row["n"]
        compared += 1
    assert compared >= 4 * 5


def test_a_run_beside_its_copy_differs_in_nothing(selftrain, finished, copy_of, tmp_path, monkeypatch):
    copy = copy_of(*ALL)
    settings = json.loads((finished[0] / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings))
    done = selftrain.command("compare", finished[0], copy, f"--out={tmp_path / 'c.html'}")
    assert done.returncode == 0, done.stderr
    assert "No setting differs." in done.stdout and "COMPARABLE" not in done.stdout
    assert "control (real text):" in done.stdout and (tmp_path / "c.html").read_text().startswith("<!DOCTYPE html>")
    with monkeypatch.context() as inside:
        inside.chdir(finished[0])
        done = selftrain.command("compare", ".", copy, f"--out={tmp_path / 'c.csv'}")
    assert done.returncode == 0 and set(pd.read_csv(tmp_path / "c.csv").run) == {finished[0].name, copy.name}
    shutil.rmtree(copy / "report")
    for arguments, words in (
        (("compare", finished[0]), "needs two or more runs"),
        (("compare", finished[0], finished[0]), "needs two or more runs"),
        (("compare", finished[0], copy), "stage report is not done"),
        (("compare", finished[0], copy, "--out=x.xls"), "its name must end in .html, .parquet"),
        (("items", copy, "--out=x.xls"), "its name must end in .parquet"),
        (("metrics", copy, "--out=x.csv"), "stage report is not done"),
        (("items", tmp_path, "--out=x.csv"), "not found"),
    ):
        refused = selftrain.command(*arguments)
        assert refused.returncode == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1
