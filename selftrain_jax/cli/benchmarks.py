"""Benchmarks of lm-evaluation-harness, which other sub-commands do without (extra `eval`)."""

import argparse

from selftrain_jax.core.errors import InputError, visible
from selftrain_jax.core.files import user_path, write_json
from selftrain_jax.core.storage import Workdir
from selftrain_jax.distributed.mesh import configure_jax, make_mesh
from selftrain_jax.evaluation import harness, harness_tasks
from selftrain_jax.evaluation.batches import check_batch_size
from selftrain_jax.evaluation.task_book import RESULTS, TaskBook, expand
from selftrain_jax.run.references import find_model


def evaluate_tasks(arguments: argparse.Namespace) -> int:
    """`selftrain evaluate MODEL --tasks ... --out DIR`; returns the exit code."""
    if arguments.tasks is None or arguments.out is None:
        raise InputError("evaluate MODEL needs --tasks NAME,... and --out DIR; see selftrain evaluate --help")
    names = ("limit", "dtype", "bootstrap_iters")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    settings = harness_tasks.Settings(**given, confirm_run_unsafe_code=arguments.confirm_run_unsafe_code)
    batch_size = 64 if arguments.batch_size is None else arguments.batch_size
    check_batch_size(batch_size)
    requests = expand(arguments.tasks.split(","), arguments.num_fewshot)
    out = user_path(arguments.out)
    found = find_model(arguments.model, arguments.revision)
    allowed = arguments.confirm_run_unsafe_code
    book = TaskBook([request.name for request in requests], arguments.include_path, allowed)

    def make_model():
        configure_jax()
        mesh = make_mesh()
        return harness.HarnessModel(
            found.load(mesh), found.config, found.tokenizer, mesh=mesh, batch_size=batch_size, dtype=settings.dtype
        )

    with Workdir(out).held():
        results = harness_tasks.run(requests, book, found.fingerprint, out / "tasks", settings, make_model)
        rows = harness_tasks.rows(results)
        record = {"model": arguments.model, "revision": arguments.revision, "fingerprint": found.fingerprint}
        write_json(out / RESULTS, record | {"dtype": settings.dtype, "metrics": rows, "tasks": results})
    print("\n" + visible(harness_tasks.format_table(rows), keep="\n") + f"\n\nresults: {out / RESULTS}")
    return 0
