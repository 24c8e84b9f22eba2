"""The sub-commands of `selftrain` that turn results into tables."""

import argparse
from typing import Callable

import pyarrow as pa

from selftrain_jax.core.files import user_path
from selftrain_jax.distributed.mesh import configure_jax
from selftrain_jax.run import stages, tables
from selftrain_jax.run.references import check_current, open_run
from selftrain_jax.study.tables import study_table


def items(arguments: argparse.Namespace) -> int:
    """`selftrain items`: one row per model and item."""
    return _write(arguments, tables.item_table, "evaluate")


def metrics(arguments: argparse.Namespace) -> int:
    """`selftrain metrics`: one row per figure."""
    return _write(arguments, tables.metric_table, "report")


def _write(arguments: argparse.Namespace, make: Callable[..., pa.Table], stage: str) -> int:
    tables.check_ending(arguments.out)
    configure_jax()
    workdir = user_path(arguments.workdir)
    if (workdir / "study.json").is_file():
        table = study_table(workdir, make)
    else:
        run = open_run(workdir)
        run.place.fetch("subset", "evaluate")
        names = [name for s in run.stages() if (name := s.name).split("/")[0] == stage]
        for name in names:
            stages.read_manifest(run.home, name)
        check_current(run, *names)
        table = make(run)
    tables.write_table(table, arguments.out)
    print(f"{table.num_rows:,} rows, {table.num_columns} columns: {arguments.out}")
    return 0
