"""The sub-commands of `selftrain` and their options; nothing heavy is imported to show them."""

import argparse
import pathlib
import textwrap
from typing import Callable

from selftrain_jax import __version__
from selftrain_jax.core.accelerators import ACCELERATORS

STAGES = {
    "lab": "generate the miniature world and pre-train its models (only configs with a lab)",
    "plant": "train the student on text with planted sequences, and its twin without (only configs with plant)",
    "sample": "let the source model write documents from the BOS token alone",
    "audit": "drop documents that overlap with a benchmark",
    "subset": "draw training subsets of an exact number of tokens and pack them",
    "train": "fine-tune the student on every subset of every arm",
    "evaluate": "measure the base model and every fine-tuned one; or, with MODEL, one model on benchmark tasks",
    "recover": "measure how what was planted returns to each model (only configs with recovery)",
    "report": "write report.json, report.html and the before/after table",
}
_REDO = (
    "make anew what was made with other settings or from other files, and all that was made from it; what it was is "
    "kept until that is done"
)
_EPILOG = """\
settings:
  --config=FILE.py[:ARGUMENT] names a Python file with get_config(); its docstring tells what it does. A name alone is \
that of a config that comes with the package, as `selftrain configs` lists them: --config=quickstart, \
--config=pythia:70m. `selftrain run MODEL` is short for --config=family:MODEL, the paper's settings for any model.
  --config.a.b=VALUE changes one setting, for example --config.sample.temperature=1.0.
  A folder with something in it keeps its settings: --workdir alone goes on with them, or looks at what is there.
exit codes: 0 done, 2 bad input (one line says what and how to mend it), 143 stopped by SIGTERM, 1 anything else.
"""
_DTYPE = "float32 (default), bfloat16 or float16"


class _Help(argparse.HelpFormatter):
    """Lines stay lines, each wrapped to the terminal's width."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        def fill(line: str) -> str:
            own = indent + line[: len(line) - len(line.lstrip())]
            return textwrap.fill(line.strip(), width, initial_indent=own, subsequent_indent=own, break_on_hyphens=False)

        return "\n".join(map(fill, text.splitlines()))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selftrain",
        description="Prompt-free unconditional self-training of language models, in JAX: a base model writes documents "
        "from the BOS token alone, a student learns from them, and capability and verbatim memorization are measured "
        "before and after.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"selftrain_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_runs(commands)
    _add_tools(commands)
    return parser


def _add_runs(commands) -> None:
    """Adds a parser per command that takes a config to the sub-parsers `commands`."""

    def add(name: str, text: str, workdir: str = "the run's folder, on disk or gs://...") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG, formatter_class=_Help
        )
        whose = "study" if name == "study" else "run"
        kept = " (default: those that the workdir keeps)" * bool(workdir)
        settings = f"the {whose}'s settings{kept}"
        command.add_argument("--config", required=not workdir, metavar="FILE.py[:ARG]", help=settings)
        if workdir:
            needed = name not in ("evaluate", "config")  # `evaluate` takes MODEL instead, `config` a config alone
            command.add_argument("--workdir", required=needed, metavar="DIR", help=workdir)
        return command

    training = [add("run", "all stages, in order; goes on where an earlier run stopped")]
    stages = {name: add(name, text) for name, text in STAGES.items()}
    training.append(stages["train"])
    stages["sample"].add_argument("--show", type=int, default=0, metavar="N", help="print N documents when done")
    training[0].add_argument("--probes", metavar="FILE", help="short for --config.evaluate.probes=FILE")
    training[0].add_argument("--redo", action="store_true", help=_REDO)
    training[0].add_argument(
        "--dry-run", action="store_true", help="say what would be kept, redone and done, and how long it took; no more"
    )
    for command in training:
        command.add_argument("--wandb", default="", metavar="PROJECT", help="log training to Weights & Biases, too")
        command.add_argument("--profile", action="store_true", help="write a JAX trace of some steps of each training")
    _add_task_options(stages["evaluate"])
    stages["evaluate"].usage = (
        "selftrain evaluate --workdir DIR [...]\n"
        "       selftrain evaluate MODEL --tasks NAME,...\n                          --out DIR [options]"
    )
    stages["evaluate"].description = (
        "Two commands:\n"
        "  With --workdir, the stage of a run: measures its base model and every fine-tuned one as the config says.\n"
        "  With MODEL, one model on benchmark tasks of lm-evaluation-harness; no config belongs to it."
    )
    option = add("status", "what is done, started and waiting in a run or study, how far, and how long the rest takes")
    option.add_argument(
        "--watch", action="store_true", help="show it again whenever it changes, until the run ends or Ctrl-C"
    )
    add("config", "every setting: its value, what it means and where it comes from")

    option = add(
        "plan",
        "memory per device on a mesh, and the largest batch and wave that fit an accelerator; of a study, device-"
        "hours; needs no device",
        workdir="",
    ).add_argument
    option("--mesh", default="", metavar="AXES", help="for example data=1,fsdp=4,tensor=2 (default: config's)")
    option("--accelerator", default="", metavar="NAME", help=", ".join(ACCELERATORS))
    option("--memory", default="", metavar="SIZE", help="of one device, such as 24GiB, where it is not in that list")
    option("--devices", type=int, metavar="N", help="how many (default: the product of the mesh, or 1)")
    option(
        "--compile",
        nargs="?",
        const="all",
        default="",
        choices=("step", "train", "sample", "all"),
        metavar="WHAT",
        help="compile the train step (step; with its largest batch: train), the sampler (sample) or both (all, the "
        "default) for TPUs that are not there: memory, largest batch and wave, collectives, a roofline; minutes (pip "
        "install 'selftrain_jax[tpu]')",
    )
    option("--tpu-slices", type=int, metavar="N", help="with --compile: slices that the chips lie in (default: 1)")
    option("--json", action="store_true", help="with --compile: as one JSON object, in bytes and seconds")

    command = add(
        "study",
        "many runs as one experiment: students x sources with controls, proxies, verdicts and a page",
        workdir="the study's folder, on disk",
    )
    command.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="do every N-th unit from I = 0 ... N - 1 on, beside the other shards in the same folder; shard 0 waits "
        "for all and writes the page",
    )
    option = command.add_mutually_exclusive_group().add_argument
    option("--report", action="store_true", help="do nothing but write the page, from what is done so far")
    option("--redo", action="store_true", help=_REDO)


def _add_tools(commands) -> None:
    """Adds a parser per tool to the sub-parsers `commands`."""

    def add(name: str, text: str, more: str = "") -> Callable:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.{more}").add_argument

    option = add(
        "probes",
        "make a probe file of your own pairs of texts, of any text, of EleutherAI's memorized-evals or of token arrays",
        " Give --pairs, --text, --dataset, or --prefixes with --suffixes and --source.",
    )
    option("--pairs", metavar="FILE", help="rows with prefix and suffix as text: .jsonl, .json, .csv or .parquet")
    option("--text", metavar="FILE", help="windows of a text set: rows with text, or one plain text file")
    option(
        "--dataset",
        metavar="NAME",
        help="rows of a data set with columns index and tokens, e.g. "
        "EleutherAI/pythia-memorized-evals: a hub name or a saved folder",
    )
    option("--split", metavar="NAME", help="part of the data set, e.g. deduped.1.4b")
    option("--prefixes", metavar="FILE.npy", help="lm-extraction-benchmark: token ids [n, length] of the prefixes")
    option("--suffixes", metavar="FILE.npy", help="token ids [n, length] of the suffixes")
    option("--source", metavar="MODEL", help="whose tokenizer the arrays' ids belong to, e.g. gpt2")
    option("--target", metavar="MODEL", help="whose tokenizer the probes are for (not with --dataset)")
    option(
        "--prefix-length",
        type=_lengths,
        default=[32],
        metavar="K,...",
        help="tokens given (--text, --dataset; default: 32); of a text also several lengths, each a group of its own",
    )
    option("--suffix-length", type=int, default=32, metavar="M", help="tokens asked for (default: 32)")
    option("--stride", type=int, metavar="N", help="tokens between windows of a text (default: K + M)")
    option("--limit", type=int, metavar="N", help="keep N probes, drawn at random")
    option("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    option("--out", required=True, metavar="FILE.jsonl", help="the probe file to write")

    option = add(
        "import", "turn text that another generator wrote into a corpus for `corpus` or `controls.NAME.corpus`"
    )
    option("source", metavar="SOURCE", help="a .jsonl or .json file, a folder with a data set, tfds:NAME or tfds:/DIR")
    option("out", metavar="OUT", help="the corpus folder to make")
    option("--tokenizer", required=True, metavar="MODEL", help="whose tokenizer: the student's")
    option("--field", default="text", metavar="NAME", help="which field is the text (default: text)")
    option("--split", default="train", metavar="NAME", help="part of a data set (default: train)")
    option("--limit", type=int, metavar="N", help="take the first N texts only")

    option = add(
        "leaks",
        "look for known text in a corpus that a model wrote: the longest run of each document that stands in it",
        " Tokens are compared with --tokenizer, characters always.",
    )
    option("corpus", metavar="CORPUS", help="a finished corpus, such as RUN/sample/self/corpus")
    option(
        "--reference",
        action="append",
        default=[],
        metavar="FILE",
        help="known text, once or more: rows with text, or one plain text file",
    )
    option("--probes", metavar="FILE", help="known sequences, by group: a probe file of --tokenizer")
    option("--tokenizer", metavar="MODEL", help="the model that wrote the corpus, or another whose tokens count")
    option("--tokens", type=int, default=50, metavar="N", help="a document leaks from so long a run on (default: 50)")
    option("--characters", type=int, default=200, metavar="N", help="the same in characters (default: 200)")
    option("--show", type=int, default=10, metavar="N", help="documents to show (default: 10)")
    option("--out", type=pathlib.Path, metavar="FILE.json", help="write all that is found there, too")

    add("completion", "print a script that lets a shell complete commands and options with the Tab key")(
        "shell",
        choices=("bash", "zsh", "tcsh"),
        help="for example: eval \"$(selftrain completion bash)\"; needs pip install 'selftrain_jax[completion]'",
    )
    add("configs", "list the configs that come with the package, with what they cost")
    option = add("init", "copy a config that comes with the package, to change it")
    option("name", metavar="NAME", help="one that `selftrain configs` lists")
    option("out", type=pathlib.Path, metavar="FILE.py", help="the file to write")

    for name, rows in (("items", "model and item: every measure, with the texts"), ("metrics", "figure of the report")):
        option = add(name, f"write the results of a run or study as a table, one row per {rows}")
        option("workdir", metavar="WORKDIR", help="the folder of a run or study")
        option("--out", required=True, metavar="FILE", help="the table to write: .parquet, .csv or .jsonl")

    option = add("compare", "figures of several runs side by side, and what differs in their settings")
    option("workdirs", nargs="+", metavar="WORKDIR", help="folders of runs")
    option("--out", metavar="FILE", help="a page (.html), or all figures as a table (.parquet, .csv or .jsonl)")

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
    _add_push(option)

    option = add("publish", "write a corpus as a Hugging Face data set: Parquet, with a card")
    option("source", type=pathlib.Path, metavar="CORPUS", help="the folder of a corpus, such as RUN/sample/self/corpus")
    option("out", type=pathlib.Path, metavar="DIR", help="the directory to write")
    _add_push(option)

    option = add(
        "verify",
        "compare our model with transformers on PyTorch (pip install torch), on the same checkpoint",
        " Exit code 0 only if the fp32 logits agree.",
    )
    option("model", metavar="MODEL", help="a Hugging Face directory, or a name such as EleutherAI/pythia-70m")
    option("--revision", metavar="REV", help="hub revision, for example step1000")
    option(
        "--dtype",
        action="append",
        choices=("fp32", "bf16"),
        help="what to compare, once or more; default both. fp32 is always measured, since it decides",
    )
    option(
        "--arc-easy",
        metavar="FILE.jsonl",
        help="the ARC-Easy test set: with pythia-70m, checks published log-likelihoods too",
    )


def _add_push(option: Callable) -> None:
    option("--push", default="", metavar="USER/NAME", help="upload it to this private repository on the hub, too")
    option("--public", action="store_true", help="to a public one")


def _lengths(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    """What `selftrain evaluate MODEL` takes; without MODEL that command is the stage of a run."""
    group = parser.add_argument_group("tasks of lm-evaluation-harness (extra eval)")
    option = group.add_argument
    option(
        "model", nargs="?", metavar="MODEL", help="a directory, a hub name, or RUN:self-0 for a model of the run in RUN"
    )
    option("--tasks", metavar="NAME,...", help="the harness's tasks, paper-zero-shot or paper-few-shot")
    option("--out", type=pathlib.Path, metavar="DIR", help="where results.json goes, and what is done so far")
    option("--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: what each task says)")
    option("--limit", type=int, metavar="N", help="the first N items of every task only")
    option("--batch-size", type=int, metavar="N", help="sequences scored at once (default: 64)")
    option("--dtype", metavar="DTYPE", help="compute dtype: float32 (default) or bfloat16")
    option("--revision", metavar="REV", help="hub revision, for example step143000")
    option("--include-path", metavar="DIR", help="a folder of YAML task files of your own, which run code")
    option(
        "--bootstrap-iters", type=int, metavar="N", help="resamples for standard errors that need them (default: 1000)"
    )
    option(
        "--confirm-run-unsafe-code",
        action="store_true",
        help="let task files of --include-path and metrics that are scripts run their code, and tasks such as "
        "humaneval what the model wrote, with your rights",
    )


def task_options(arguments: argparse.Namespace) -> list[str]:
    """The options of a benchmark that were given, as the user writes them."""
    names = ["tasks", "out", "num_fewshot", "limit", "batch_size", "dtype", "revision", "include_path"]
    names.append("bootstrap_iters")
    given = [name for name in names if getattr(arguments, name) is not None]
    given += ["confirm_run_unsafe_code"] * arguments.confirm_run_unsafe_code
    return ["--" + name.replace("_", "-") for name in given]
