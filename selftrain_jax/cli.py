"""The `selftrain` command: one sub-command per stage, `run` for all of them, `status` for what is done."""

import argparse
import ast
import os
import pathlib
import runpy
import shlex
import sys
import traceback
from typing import Any, Sequence

from selftrain_jax import __version__
from selftrain_jax.errors import InputError

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
        return _dispatch(arguments, overrides, argv)
    except InputError as e:
        print(f"selftrain: error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("selftrain: interrupted; the same command goes on from here", file=sys.stderr)
        return 1


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
    text = "turn text that another generator wrote into a corpus for `corpus` or `controls.NAME.corpus`"
    external = commands.add_parser("import", help=text, description=text[0].upper() + text[1:] + ".")
    external.add_argument(
        "source", metavar="SOURCE", help=".jsonl(.gz) or .json file, Hugging Face data set folder, tfds:NAME or tfds:/DIR"
    )
    external.add_argument("out", metavar="OUT", help="the corpus folder to make")
    external.add_argument("--tokenizer", required=True, metavar="MODEL", help="whose tokenizer: the student's")
    external.add_argument("--field", default="text", metavar="NAME", help="which field is the text (default: text)")
    external.add_argument("--split", default="train", metavar="NAME", help="part of a data set (default: train)")
    external.add_argument("--limit", type=int, metavar="N", help="take the first N texts only")
    return parser


def _dispatch(arguments: argparse.Namespace, overrides: list[str], argv: list[str]) -> int:
    if arguments.command == "probes":
        return _convert_probes(arguments, overrides)
    if arguments.command == "import":
        return _import_corpus(arguments, overrides)
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
        _show_documents(pipeline.corpus_path(pipeline.main), arguments.show)
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


def _convert_probes(arguments: argparse.Namespace, unknown: list[str]) -> int:
    _refuse(unknown, "probes")
    from selftrain_jax.evaluation.probes import convert_arrays

    counts = convert_arrays(arguments.prefixes, arguments.suffixes, arguments.source, arguments.target, arguments.out)
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + f": {arguments.out}")
    return 0


def _import_corpus(arguments: argparse.Namespace, unknown: list[str]) -> int:
    _refuse(unknown, "import")
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


def _refuse(unknown: list[str], command: str) -> None:
    if unknown:
        raise InputError(f"argument {unknown[0]!r} is not understood; see selftrain {command} --help")


def _show_documents(corpus: pathlib.Path, count: int) -> None:
    from selftrain_jax.data.corpus import read_corpus

    for document in read_corpus(corpus)[:count]:
        print(f"\n--- document {document.id} ({len(document.tokens)} tokens, {document.stop_reason}) ---\n{document.text}")


def _say(text: str) -> None:
    print(text, flush=True)
