"""The sub-commands of `selftrain` that need no run: models and texts in and out, benchmarks, and checks."""

import argparse
import pathlib
from typing import Callable

from selftrain_jax.errors import InputError

_DTYPE = "float32 (default), bfloat16 or float16"


def add_commands(commands) -> None:
    """Adds a parser per tool to the sub-parsers `commands`."""

    def add(name: str, text: str, more: str = "") -> Callable:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.{more}").add_argument

    option = add("probes", "make a probe file of published token arrays, of any text or of EleutherAI's memorized-evals",
                 " Give --text, --dataset, or --prefixes with --suffixes and --source.")  # fmt: skip
    option("--text", metavar="FILE", help="windows of a text set: JSON lines with text, or one plain text file")
    option("--dataset", metavar="NAME", help="rows of a data set with columns index and tokens, e.g. "
           "EleutherAI/pythia-memorized-evals: a hub name or a saved folder")  # fmt: skip
    option("--split", metavar="NAME", help="part of the data set, e.g. deduped.1.4b")
    option("--prefixes", metavar="FILE.npy", help="lm-extraction-benchmark: token ids [n, length] of the prefixes")
    option("--suffixes", metavar="FILE.npy", help="token ids [n, length] of the suffixes")
    option("--source", metavar="MODEL", help="whose tokenizer the arrays' ids belong to, e.g. gpt2")
    option("--target", metavar="MODEL", help="whose tokenizer the probes are for (with --text or arrays)")
    option("--prefix-length", type=int, default=32, metavar="K", help="tokens given (--text, --dataset; default: 32)")
    option("--suffix-length", type=int, default=32, metavar="M", help="tokens asked for (default: 32)")
    option("--stride", type=int, metavar="N", help="tokens between windows of a text (default: K + M)")
    option("--limit", type=int, metavar="N", help="keep N probes, drawn at random")
    option("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    option("--out", required=True, metavar="FILE.jsonl", help="the probe file to write")

    option = add("import", "turn text that another generator wrote into a corpus for `corpus` or `controls.NAME.corpus`")
    option("source", metavar="SOURCE", help=".jsonl(.gz) or .json, a Hugging Face data set folder, tfds:NAME or tfds:/DIR")
    option("out", metavar="OUT", help="the corpus folder to make")
    option("--tokenizer", required=True, metavar="MODEL", help="whose tokenizer: the student's")
    option("--field", default="text", metavar="NAME", help="which field is the text (default: text)")
    option("--split", default="train", metavar="NAME", help="part of a data set (default: train)")
    option("--limit", type=int, metavar="N", help="take the first N texts only")

    option = add("convert", "write a Hugging Face model as Orbax arrays, which restore on any mesh")
    option("source", metavar="MODEL", help="Hugging Face directory or hub name")
    option("out", type=pathlib.Path, metavar="DIR", help="the directory to write")
    option("--revision", metavar="REV", help="hub revision, for example step143000")
    option("--dtype", default="float32", metavar="DTYPE", help=_DTYPE)

    option = add("export", "write a run's model, or a converted one, as a Hugging Face directory")
    option("source", metavar="WORKDIR", help="a run's folder, or one of `selftrain convert`")
    option("out", type=pathlib.Path, metavar="DIR", help="the directory to write")
    option("--model", metavar="NAME", help="which model of the run: self-0 (default), real-0, base, ...")
    option("--step", type=int, metavar="N", help="which of its checkpoints (default: the last)")
    option("--dtype", default="float32", metavar="DTYPE", help=_DTYPE)

    option = add("verify", "compare our model with transformers on PyTorch (pip install torch), on the same checkpoint",
                 " Exit code 0 only if the fp32 logits agree.")  # fmt: skip
    option("model", metavar="MODEL", help="a Hugging Face directory, or a name such as EleutherAI/pythia-70m")
    option("--revision", metavar="REV", help="hub revision, for example step1000")
    option("--dtype", action="append", choices=("fp32", "bf16"),
           help="what to compare, once or more; default both. fp32 is always measured, since it decides")  # fmt: skip
    option("--arc-easy", metavar="FILE.jsonl",
           help="the ARC-Easy test set: with pythia-70m, checks published log-likelihoods too")  # fmt: skip


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """What `selftrain evaluate MODEL` takes; without MODEL that command is the stage of a run."""
    group = parser.add_argument_group("benchmarks of lm-evaluation-harness (pip install 'selftrain_jax[eval]')")
    option = group.add_argument
    option("model", nargs="?", metavar="MODEL", help="a directory, a hub name, or RUN:self-0 for a model of the run in RUN")
    option("--tasks", metavar="NAME,...", help="the harness's tasks, paper-zero-shot or paper-few-shot")
    option("--out", type=pathlib.Path, metavar="DIR", help="where results.json goes, and what is done so far")
    option("--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: what each task says)")
    option("--limit", type=int, metavar="N", help="the first N items of every task only")
    option("--batch-size", type=int, metavar="N", help="sequences scored at once (default: 64)")
    option("--dtype", metavar="DTYPE", help="compute dtype: float32 (default) or bfloat16")
    option("--revision", metavar="REV", help="hub revision, for example step143000")
    option("--include-path", metavar="DIR", help="a folder of YAML task files of your own")
    option("--bootstrap-iters", type=int, metavar="N", help="resamples for standard errors that need them (default: 1000)")
    option("--confirm-run-unsafe-code", action="store_true",
           help="let tasks such as humaneval run code that the model wrote, with your rights")  # fmt: skip


def task_options(arguments: argparse.Namespace) -> list[str]:
    """The options of `add_task_options` that were given, as the user writes them."""
    names = ("tasks", "out", "num_fewshot", "limit", "batch_size", "dtype", "revision", "include_path", "bootstrap_iters")
    given = [name for name in names if getattr(arguments, name) is not None]
    given += ["confirm_run_unsafe_code"] * arguments.confirm_run_unsafe_code
    return ["--" + name.replace("_", "-") for name in given]


def evaluate_tasks(arguments: argparse.Namespace) -> int:
    """`selftrain evaluate MODEL --tasks ... --out DIR`."""
    from selftrain_jax import parallel
    from selftrain_jax.evaluation import harness_tasks
    from selftrain_jax.evaluation.score import check_batch_size
    from selftrain_jax.files import user_path, write_json
    from selftrain_jax.references import find_model

    if arguments.tasks is None or arguments.out is None:
        raise InputError("evaluate MODEL needs --tasks NAME,... and --out DIR; see selftrain evaluate --help")
    names = {"limit": "limit", "dtype": "dtype", "bootstrap_iters": "bootstrap_iters"}
    given = {name: getattr(arguments, option) for name, option in names.items() if getattr(arguments, option) is not None}
    settings = harness_tasks.Settings(**given, confirm_run_unsafe_code=arguments.confirm_run_unsafe_code)
    batch_size = 64 if arguments.batch_size is None else arguments.batch_size
    check_batch_size(batch_size)
    requests = harness_tasks.expand(arguments.tasks.split(","), arguments.num_fewshot)
    out = user_path(arguments.out)
    found = find_model(arguments.model, arguments.revision)
    book = harness_tasks.TaskBook([request.name for request in requests], arguments.include_path)

    def make_model():
        from selftrain_jax.evaluation.harness import HarnessModel

        parallel.enable_compilation_cache()
        mesh = parallel.make_mesh()
        return HarnessModel(
            found.load(mesh), found.config, found.tokenizer, mesh=mesh, batch_size=batch_size, dtype=settings.dtype
        )

    results = harness_tasks.run(requests, book, found.fingerprint, out / "tasks", settings, make_model)
    rows = harness_tasks.rows(results)
    record = {"model": arguments.model, "revision": arguments.revision, "fingerprint": found.fingerprint}
    write_json(out / "results.json", record | {"dtype": settings.dtype, "metrics": rows, "tasks": results})
    print("\n" + harness_tasks.format_table(rows) + f"\n\nresults: {out / 'results.json'}")
    return 0


def _probes(arguments: argparse.Namespace) -> int:
    from selftrain_jax.evaluation import probes

    a = arguments
    arrays = a.prefixes or a.suffixes or a.source
    if sum(map(bool, (a.text, a.dataset, arrays))) != 1:
        raise InputError("probes: give one of --text, --dataset, or --prefixes with --suffixes and --source")
    needed = ("split",) if a.dataset else ("target",) if a.text else ("prefixes", "suffixes", "source", "target")
    if missing := [f"--{name}" for name in needed if not getattr(a, name)]:
        raise InputError(f"probes: {', '.join(missing)} is missing; see selftrain probes --help")
    drawn = {"prefix_length": a.prefix_length, "suffix_length": a.suffix_length, "limit": a.limit, "seed": a.seed}
    if a.text:
        counts = probes.window_probes(a.text, a.target, a.out, stride=a.stride, **drawn)
    elif a.dataset:
        counts = probes.dataset_probes(a.dataset, a.split, a.out, **drawn)
    else:
        counts = probes.convert_arrays(a.prefixes, a.suffixes, a.source, a.target, a.out)
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) + f": {a.out}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from selftrain_jax.data.external import import_corpus

    manifest = import_corpus(
        arguments.source, arguments.out, arguments.tokenizer,
        field=arguments.field, split=arguments.split, limit=arguments.limit,
    )  # fmt: skip
    counts = manifest["provenance"]
    print(
        f"{manifest['num_documents']:,} documents, {manifest['num_tokens']:,} tokens, {counts['num_empty']:,} empty texts "
        f"dropped, {counts['num_with_special_tokens']:,} with special tokens read as text: {arguments.out}"
    )
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from selftrain_jax.export import convert

    convert(arguments.source, arguments.out, revision=arguments.revision, dtype=arguments.dtype)
    print(f"Orbax arrays: {arguments.out}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from selftrain_jax.export import export

    export(arguments.source, arguments.out, model=arguments.model, step=arguments.step, dtype=arguments.dtype)
    print(f"Hugging Face model: {arguments.out}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from selftrain_jax import parallel
    from selftrain_jax.models import verify

    model, revision, item = arguments.model, arguments.revision, None
    if arguments.arc_easy is not None:
        from selftrain_jax.evaluation import published

        item = published.first_arc_easy_item(arguments.arc_easy, model, revision)
    parallel.enable_compilation_cache()
    verdict = verify.verify(model, revision, arguments.dtype or verify.DTYPES)
    print(verify.format_tables(verdict) + "\n", flush=True)
    ok, outcome = verdict.ok, [verify.format_verdict(verdict)]
    if item is not None:
        check = published.check_arc_easy(item, model, revision)
        print(published.format_check(check) + "\n")
        ok &= check.ok
        outcome.append(f"ARC-Easy figures {'agree' if check.ok else 'differ'} (max gap {check.max_gap:.1e} nats)")
    print(f"{'OK' if ok else 'DIFFERENT'}: {'; '.join(outcome)}")
    return 0 if ok else 1


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "probes": _probes, "import": _import, "convert": _convert, "export": _export, "verify": _verify,
}  # fmt: skip
"""Name -> what it does; returns the exit code."""
