"""What the TPU compiler makes of train step and decode bucket, for models and slices that need not be there.

    python benchmarks/tpu.py                        # compiles what benchmarks/tpu.jsonl lacks; hours of one core
    python benchmarks/tpu.py --only=410m            # of that, what has this in its name
    python benchmarks/tpu.py --table                # prints the tables of docs/launching.md
    python benchmarks/tpu.py --plot=docs/tpu.png    # draws what the growth table says
    python benchmarks/tpu.py --estimates            # beside the largest slices and waves: `plan` without the compiler

Each cell is `selftrain plan --compile --json` with the settings of configs/family.py (bfloat16, recomputation, rows of
2,048 tokens, documents of 1,024) in one slice a step, fsdp over all chips of a TPU slice, data over TPU slices."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from typing import Sequence

import sides

FOUND = sides.ROOT / "benchmarks" / "tpu.jsonl"
MODELS = (
    *(f"EleutherAI/pythia-{size}" for size in ("410m", "1b", "1.4b", "2.8b", "6.9b", "12b")),
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen2.5-7B",
)
STEP = "step compiled", "memory of a chip", "received", "seconds at least", "tokens/s at most"
PLACES = (("v5e", 8), ("v5e", 16), ("v5p", 16), ("v6e", 8))


@dataclasses.dataclass(frozen=True)
class Cell:
    model: str
    accelerator: str
    chips: int
    tpu_slices: int = 1
    what: str = "all"

    @property
    def place(self) -> str:
        joined = f"{self.tpu_slices} x " * (self.tpu_slices > 1)
        return f"{self.model.split('/')[1]} {joined}{self.accelerator}:{self.chips // self.tpu_slices}"

    @property
    def name(self) -> str:
        return self.place + ", step alone" * (self.what == "step")

    @property
    def command(self) -> list[str]:
        return [
            *(
                sys.executable,
                "-m",
                "selftrain_jax",
                "plan",
                f"--config={sides.ROOT / 'configs/family.py'}:{self.model}",
            ),
            *(f"--accelerator={self.accelerator}", f"--devices={self.chips}", f"--tpu-slices={self.tpu_slices}"),
            f"--mesh=data={self.tpu_slices},fsdp={self.chips // self.tpu_slices}",
            *("--config.train.grad_accum=1", f"--compile={self.what}", "--json"),
        ]


GROWTH = [
    Cell("EleutherAI/pythia-410m", "v6e", 8),
    *(Cell("EleutherAI/pythia-410m", "v6e", n, what="step") for n in (32, 256)),
    Cell("EleutherAI/pythia-410m", "v6e", 64, 2, "step"),
    *(Cell("EleutherAI/pythia-12b", "v6e", n, what="step") for n in (16, 256)),
    Cell("EleutherAI/pythia-12b", "v6e", 32, 2, "step"),
]
CELLS = list(dict.fromkeys([*(Cell(model, *place) for place in PLACES for model in MODELS), *GROWTH]))


def known() -> dict[str, dict]:
    """Cell name -> what was found, one line of the file each."""
    rows = map(json.loads, FOUND.read_text().splitlines()) if FOUND.exists() else ()
    return {row["cell"]: row for row in rows}


def compile_missing(only: str) -> None:
    """One after the other; each adds a line to the file once it is done."""
    for cell in CELLS:
        row = known().get(cell.name)
        done = row and (cell.what == "step" or not row["training"] or "largest" in row["training"])
        if done or only not in cell.name:
            continue
        begin = time.perf_counter()
        print(cell.name, file=sys.stderr, flush=True)
        environment = os.environ | {"PYTHONPATH": sides.PATHS}
        done = subprocess.run(cell.command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{cell.name}: exit code {done.returncode}")
        row = {"cell": cell.name, "took": round(time.perf_counter() - begin), **json.loads(done.stdout)}
        with FOUND.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(found: dict[str, dict], cells: list[Cell]) -> str:
    """Markdown: memory by chip, and what bounds the speed at the compiled size."""
    return _markdown(STEP, {cell.place: _step(found[cell.name]) for cell in cells if cell.name in found})


def largest_table(found: dict[str, dict], cells: list[Cell]) -> str:
    """Markdown: the same, with the largest slice and wave."""
    rows = {}
    for cell in cells:
        if (row := found.get(cell.name)) is None:
            continue
        training, sampling = row["training"], row["sampling"]
        rest = [_rows(training.get("largest"), training["ways"]) if training else "", "does not fit", ""]
        if sampling:
            seconds = max(sampling["seconds"].values()) / sampling["steps"]
            rest[1:] = _rows(sampling["largest"], sampling["ways"]), f"{seconds:.4f} of {sampling['rows']}"
        rows[cell.place] = [*_step(row), *rest]
    return _markdown((*STEP, "largest slice", "largest wave", "decode step, s at least"), rows)


def _markdown(columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| model, chips | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    return "\n".join([*lines, *(f"| {place} | {' | '.join(row)} |" for place, row in rows.items())])


def _step(row: dict) -> list[str]:
    if not (training := row["training"]):
        return ["does not fit", *[""] * (len(STEP) - 1)]
    rows = training["rows"] // training["ways"]
    return [
        f"{rows} row{'s' * (rows > 1)} a chip",
        f"{training['arguments'] / 2**30:.2f} + {training['temporaries'] / 2**30:.2f} GiB",
        f"{sum(kind['received'] for kind in training['traffic'].values()) / 2**30:.1f} GiB",
        ", ".join(f"{name} {seconds:.3f}" for name, seconds in training["seconds"].items()),
        f"{training['tokens_per_second']:,.0f}",
    ]


def _rows(count: int | None, ways: int) -> str:
    return {None: "not compiled", 0: "none"}.get(count) or f"{count:,} ({count // ways} a chip)"


def estimates(found: dict[str, dict], only: str) -> None:
    """A line for each cell with a largest slice: what `plan` says without the compiler, and over what it says with."""
    for cell in CELLS:
        row = found.get(cell.name) or {}
        if only not in cell.name or not (row.get("training") or {}).get("largest"):
            continue
        left_out = ("--tpu-slices", "--compile", "--json")
        command = [part for part in cell.command if not part.startswith(left_out)]
        environment = os.environ | {"PYTHONPATH": sides.PATHS}
        said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        parts = [cell.place]
        for kind, noun in (("training", "slice"), ("sampling", "wave")):
            most = re.search(rf"largest {kind} {noun} .*?: (\d+) ", said)
            if row[kind]:
                count, compiled = int(most[1]) if most else 0, row[kind]["largest"]
                parts.append(f"{noun} {count} of {compiled} ({count / compiled:.2f})")
        print("; ".join(parts), flush=True)


def plot(found: dict[str, dict], path: str) -> None:
    """Of the train steps of models in `GROWTH`, against chips: seconds at least, what a chip receives, its memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    panels = {
        "seconds a step, at least": lambda t: max(t["seconds"].values()),
        "GiB received by a chip a step": lambda t: sum(k["received"] for k in t["traffic"].values()) / 2**30,
        "GiB of a chip's memory": lambda t: t["total"] / 2**30,
    }
    lines: dict[str, list[tuple[int, dict]]] = {}
    for cell in sorted(CELLS, key=lambda cell: cell.chips):
        steps = found.get(cell.name, {}).get("training")
        if steps and steps["rows"] == 4 * steps["ways"] and cell.model in {other.model for other in GROWTH}:
            name = f"{cell.model.split('/')[1]}, {cell.accelerator}" + ", two slices" * (cell.tpu_slices > 1)
            lines.setdefault(name, []).append((cell.chips, steps))
    chips = sorted({n for line in lines.values() for n, _ in line})
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.2), layout="constrained")
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        for name, line in lines.items():
            axis.plot([n for n, _ in line], [value(steps) for _, steps in line], "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="chips, 4 rows each", title=title)
        axis.set_xticks(chips, labels=chips)
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cells with this in their name alone")
    parser.add_argument("--table", action="store_true", help="print what is known, compile nothing")
    parser.add_argument("--plot", metavar="FILE", help="draw what is known, compile nothing")
    parser.add_argument("--estimates", action="store_true", help="compare what is known with `plan` without --compile")
    arguments = parser.parse_args()
    if arguments.table:
        print(largest_table(known(), [c for c in CELLS if c.what == "all"]), table(known(), GROWTH), sep="\n\n")
    if arguments.plot:
        plot(known(), arguments.plot)
    if arguments.estimates:
        estimates(known(), arguments.only)
    if not (arguments.table or arguments.plot or arguments.estimates):
        compile_missing(arguments.only)


if __name__ == "__main__":
    main()
