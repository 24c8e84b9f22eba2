"""The sub-commands of `selftrain` that turn results into tables."""

import argparse
import os
import pathlib
from typing import Callable

import pyarrow as pa

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import user_path, write_atomic
from selftrain_jax.distributed.mesh import configure_jax
from selftrain_jax.report.comparison import Comparison, format_comparison
from selftrain_jax.report.page import render_comparison
from selftrain_jax.run import stages, tables
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.references import check_current, open_run
from selftrain_jax.study.tables import study_table


def items(arguments: argparse.Namespace) -> int:
    """`selftrain items`: one row per model and item."""
    return _write(arguments, tables.item_table, "evaluate")


def metrics(arguments: argparse.Namespace) -> int:
    """`selftrain metrics`: one row per figure."""
    return _write(arguments, tables.metric_table, "report")


def compare(arguments: argparse.Namespace) -> int:
    """`selftrain compare`: several runs side by side."""
    out = arguments.out
    if out is not None and not (page_asked := out.lower().endswith(".html")):
        tables.check_ending(out, (".html", *tables.ENDINGS))
    if len(set(map(os.path.realpath, arguments.workdirs))) < max(2, len(arguments.workdirs)):
        raise InputError("compare needs two or more runs, each once")
    configure_jax()
    runs = [_open(user_path(workdir), "report") for workdir in arguments.workdirs]
    names = [os.path.basename(os.path.abspath(run.home)) for run in runs]  # "." has a name, too
    if len(set(names)) < len(names):
        names = list(arguments.workdirs)
    found = Comparison(names, list(map(tables.read_report, runs)))
    print(format_comparison(found), end="")
    if out is None:
        return 0
    if page_asked:
        write_atomic(out, render_comparison(found))
    else:
        places = [{arm: {"run": name} for arm in run.arms} for name, run in zip(names, runs)]
        table = pa.concat_tables(tables.metric_table(run, place=place) for run, place in zip(runs, places))
        tables.write_table(table, out)
    print(f"comparison: {out}")
    return 0


def _open(workdir: pathlib.PurePath, stage: str) -> Pipeline:
    """The run in `workdir`; `InputError` where a stage of that kind is not done or not of now."""
    run = open_run(workdir)
    run.place.fetch("subset", "evaluate")
    names = [name for s in run.stages() if (name := s.name).split("/")[0] == stage]
    for name in names:
        stages.read_manifest(run.home, name)
    check_current(run, *names)
    return run


def _write(arguments: argparse.Namespace, make: Callable[..., pa.Table], stage: str) -> int:
    tables.check_ending(arguments.out)
    configure_jax()
    workdir = user_path(arguments.workdir)
    if (workdir / "study.json").is_file():
        table = study_table(workdir, make, stage)
    else:
        table = make(_open(workdir, stage))
    tables.write_table(table, arguments.out)
    print(f"{table.num_rows:,} rows, {table.num_columns} columns: {arguments.out}")
    return 0
