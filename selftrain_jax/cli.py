"""The `selftrain` command: one sub-command per stage, `run` for all of them, `status` for what is done."""

import argparse
import ast
import contextlib
import os
import pathlib
import runpy
import shlex
import sys
import traceback
import warnings
from typing import Any, Iterator, Sequence

from selftrain_jax import __version__
from selftrain_jax.errors import InputError, InputWarning

_STAGES = {
    "lab": "generate the miniature world and pre-train its models (only configs with a lab)",
    "sample": "let the source model write documents from the BOS token alone",
    "audit": "drop documents that overlap with a benchmark",
    "subset": "draw training subsets of an exact number of tokens and pack them",
    "train": "fine-tune the student on every subset of every arm",
    "evaluate": "measure the base model and every fine-tuned one",
    "report": "write report.json, report.html and the before/after table",
}
_EPILOG = """\
settings:
  --config=FILE.py[:ARGUMENT] names a Python file with get_config(); its docstring tells what it does.
  --config.a.b=VALUE changes one setting, for example --config.sample.temperature=1.0.
exit codes: 0 done, 2 bad input (one line says what and how to mend it), 1 anything else.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, overrides = _parser().parse_known_args(argv)
    try:
        with _one_line_warnings():
            return _dispatch(arguments, overrides, argv)
    except InputError as e:
        print(f"selftrain: error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("selftrain: interrupted; the same command goes on from here", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Prints an `InputWarning` as the command line prints errors; other warnings as Python does."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_one_line(message, category, *rest, **named):
            if issubclass(category, InputWarning):
                print(f"selftrain: warning: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = show_one_line
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selftrain",
        description="Prompt-free unconditional self-training of language models, in JAX: a base model writes documents "
        "from the BOS token alone, a student learns from them, and capability and verbatim memorization are measured "
        "before and after.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"selftrain_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {"run": "all stages, in order; goes on where an earlier run stopped", **_STAGES,
                       "status": "what is done, started and waiting in a workdir"}.items():  # fmt: skip
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="the run's settings")
        command.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="the run's folder")
        if name == "sample":
            command.add_argument("--show", type=int, default=0, metavar="N", help="print N documents when done")
    text = "turn published token arrays (lm-extraction-benchmark) into a probe file for another tokenizer"
    probes = commands.add_parser("probes", help=text, description=text[0].upper() + text[1:] + ".")
    probes.add_argument("--prefixes", required=True, metavar="FILE.npy", help="token ids [n, length] of the prefixes")
    probes.add_argument("--suffixes", required=True, metavar="FILE.npy", help="token ids [n, length] of the suffixes")
    probes.add_argument("--source", required=True, metavar="MODEL", help="whose tokenizer the ids belong to, e.g. gpt2")
    probes.add_argument("--target", required=True, metavar="MODEL", help="whose tokenizer the probes are for")
    probes.add_argument("--out", required=True, metavar="FILE.jsonl", help="the probe file to write")
    text = "write a Hugging Face model as Orbax arrays, which restore on any mesh"
    convert = commands.add_parser("convert", help=text, description=text[0].upper() + text[1:] + ".")
    convert.add_argument("source", metavar="MODEL", help="Hugging Face directory or hub name")
    convert.add_argument("out", type=pathlib.Path, metavar="DIR", help="the directory to write")
    convert.add_argument("--revision", metavar="REV", help="hub revision, for example step143000")
    convert.add_argument("--dtype", default="float32", metavar="DTYPE", help="float32 (default), bfloat16 or float16")
    text = "write a run's model, or a converted one, as a Hugging Face directory"
    export = commands.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    export.add_argument("source", type=pathlib.Path, metavar="WORKDIR", help="a run's folder, or one of `selftrain convert`")
    export.add_argument("out", type=pathlib.Path, metavar="DIR", help="the directory to write")
    export.add_argument("--model", default="self-0", help="which model of the run: self-0 (default), real-0, base, ...")
    export.add_argument("--step", type=int, metavar="N", help="which of its checkpoints (default: the last)")
    export.add_argument("--dtype", default="float32", metavar="DTYPE", help="float32 (default), bfloat16 or float16")
    text = "compare our model with transformers on PyTorch (pip install torch), on the same checkpoint"
    verify = commands.add_parser("verify", help=text, description=text[0].upper() + text[1:] + ". Exit code 0 only if "
                                 "the fp32 logits agree.")  # fmt: skip
    verify.add_argument("model", metavar="MODEL", help="a Hugging Face directory, or a name such as EleutherAI/pythia-70m")
    verify.add_argument("--revision", metavar="R", help="branch, tag or commit of a name, e.g. step1000")
    verify.add_argument("--dtype", action="append", choices=("fp32", "bf16"), help="what to compare, once or more; default "
                        "both. fp32 is always measured, since it decides")  # fmt: skip
    verify.add_argument("--arc-easy", metavar="FILE.jsonl", help="the ARC-Easy test set: with pythia-70m, checks the "
                        "published log-likelihoods of its first item too")  # fmt: skip
    return parser


def _dispatch(arguments: argparse.Namespace, overrides: list[str], argv: list[str]) -> int:
    if arguments.command in _TOOLS:
        if overrides:
            raise InputError(f"argument {overrides[0]!r} is not understood; see selftrain {arguments.command} --help")
        return _TOOLS[arguments.command](arguments)
    config = load_config(arguments.config, overrides)
    from selftrain_jax import stages
    from selftrain_jax.pipeline import Pipeline, save_config

    command = "selftrain " + shlex.join(argv)
    pipeline = Pipeline(config, arguments.workdir, command)
    plan = pipeline.stages()
    if arguments.command == "status":
        stages.check(pipeline.workdir, plan)
        for stage in plan:
            print(f"{stages.state(pipeline.workdir, stage):8} {stage.name}")
        return 0
    stages.check(pipeline.workdir, plan)
    pipeline.check_files()
    _start_jax()
    save_config(pipeline.workdir, config)
    wanted = arguments.command
    stages.run(pipeline.workdir, plan, lambda name: wanted in ("run", name.split("/")[0]), _say)
    if wanted == "sample" and arguments.show:
        _show_documents(pipeline.workdir, arguments.show)
    if wanted in ("run", "report"):
        report = pipeline.workdir / "report"
        print("\n" + (report / "table.txt").read_text())
        print(f"report: {report / 'report.html'}")
    return 0


def load_config(reference: str, overrides: Sequence[str] = ()):
    """The `RunConfig` of a config file, `FILE.py` or `FILE.py:ARGUMENT`, with `--config.a.b=value` overrides.

    Raises:
      InputError: the file is missing or broken, or a setting is unknown, of the wrong type or out of range.
    """
    from selftrain_jax.settings import RunConfig, build

    name, _, argument = reference.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputError(f"config file not found: {path}")
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)  # a config may build on its neighbour
    try:
        values = runpy.run_path(str(path))["get_config"](*([argument] if argument else [])).to_dict()
    except Exception as e:  # whatever the file does wrong is bad input
        where = [f"line {f.lineno}: " for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        what = f"{''.join(where[-1:])}{type(e).__name__}: {' '.join(str(e).split())}"
        raise InputError(f"config {reference}: {what}") from None
    finally:
        sys.path.remove(folder)
    for override in overrides:
        _override(values, override)
    return build(RunConfig, values)


def _override(values: dict[str, Any], override: str) -> None:
    """Applies one `--config.a.b=value`; the value is read as a Python literal, or else as a string."""
    name, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals:
        raise InputError(f"argument {override!r} is not understood; settings are changed with --config.NAME=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *groups, last = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise InputError(f"argument {override!r}: {group} is a single value, not a group of settings")
    values[last] = value


def _start_jax() -> None:
    """Turns on the persistent compilation cache: a second start then costs seconds, not minutes."""
    import jax

    if not jax.config.jax_compilation_cache_dir and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "selftrain_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _convert_probes(arguments: argparse.Namespace) -> int:
    from selftrain_jax.evaluation.probes import convert_arrays

    counts = convert_arrays(arguments.prefixes, arguments.suffixes, arguments.source, arguments.target, arguments.out)
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + f": {arguments.out}")
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
    from selftrain_jax.models import verify

    model, revision, item = arguments.model, arguments.revision, None
    if arguments.arc_easy is not None:
        from selftrain_jax.evaluation import published

        item = published.first_arc_easy_item(arguments.arc_easy, model, revision)
    _start_jax()
    verdict = verify.verify(model, revision, arguments.dtype or verify.DTYPES)
    _say(verify.format_tables(verdict) + "\n")
    ok, outcome = verdict.ok, [verify.format_verdict(verdict)]
    if item is not None:
        check = published.check_arc_easy(item, model, revision)
        _say(published.format_check(check) + "\n")
        ok &= check.ok
        outcome.append(f"ARC-Easy figures {'agree' if check.ok else 'differ'} (max gap {check.max_gap:.1e} nats)")
    _say(f"{'OK' if ok else 'DIFFERENT'}: {'; '.join(outcome)}")
    return 0 if ok else 1


_TOOLS = {"probes": _convert_probes, "convert": _convert, "export": _export, "verify": _verify}


def _show_documents(workdir: pathlib.Path, count: int) -> None:
    from selftrain_jax.data.corpus import read_corpus

    for document in read_corpus(workdir / "sample" / "self" / "corpus")[:count]:
        print(f"\n--- document {document.id} ({len(document.tokens)} tokens, {document.stop_reason}) ---\n{document.text}")


def _say(text: str) -> None:
    print(text, flush=True)
