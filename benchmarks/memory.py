"""What the measures of memory cost: an evaluation with all of them on against the same one without.

    python benchmarks/memory.py --preset=pythia-160m --probes=1000
    python benchmarks/memory.py --layers=1 --hidden=32 --probes=40 --questions=40 --text-tokens=4000  # a toy

Both measure the capability suite (`--questions` of four choices), the likelihood of a text (`--text-tokens`) and exact
extraction of `--probes` sequences of 32 + 32 tokens. All on: free running, the attacks with ReCaLL and a reference
model of the same size, exposure, extraction by sampling, and first tokens of the suffix. Weights are random and words
stand for tokens, since only time is looked at. Each evaluation is done once to compile and then `--rounds` times; their
order is turned every round. Last line: a JSON object with `ratio` (medians), the seconds of both and of each measure
alone (not with `--both`). `--clock=cpu` counts the processor's time in all threads, where others work on the machine,
too; it is no measure of a GPU. At toy size what is not computing counts for most."""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np

PREFIX = SUFFIX = 32
ALL = {
    "free_running": {"free_running": True, "suffix_lengths": (8, 16)},
    "attacks": {"nonmembers": "repeats=0"},
    "recall": {"nonmembers": "repeats=0", "recall_shots": 1},
    "reference": {"nonmembers": "repeats=0", "reference": "another"},
    "discoverable": {"discoverable": True},
}
"""The settings of each measure; those of the attacks without ReCaLL and reference are in both."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--preset", default="", help="a published shape, such as pythia-160m; without it, --layers and --hidden")
    option("--layers", type=int, default=2)
    option("--hidden", type=int, default=64)
    option("--vocab", type=int, default=512, help="of --layers and --hidden")
    option("--probes", type=int, default=1000)
    option("--questions", type=int, default=1000)
    option("--text-tokens", type=int, default=100_000)
    option("--batch", type=int, default=64)
    option("--dtype", default="float32")
    option("--rounds", type=int, default=2)
    option("--both", action="store_true", help="no measure alone")
    option("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, pathlib.Path(folder))))


def measure(arguments: argparse.Namespace, folder: pathlib.Path) -> dict:
    import jax

    from selftrain_jax.distributed.mesh import make_mesh
    from selftrain_jax.evaluation import suite
    from selftrain_jax.evaluation.settings import DiscoverableSettings, EvaluateSettings
    from selftrain_jax.models.config import DecoderConfig
    from selftrain_jax.models.decoder import init_params
    from selftrain_jax.models.families import preset

    shape = {"hidden_size": arguments.hidden, "intermediate_size": 4 * arguments.hidden, "num_layers": arguments.layers}
    made = {"vocab_size": arguments.vocab, "num_heads": 2, "max_position": 256, **shape}
    config = preset(arguments.preset) if arguments.preset else DecoderConfig(**made)
    write_data(arguments, config.vocab_size, folder)
    mesh = make_mesh(devices=jax.devices()[:1])
    params, other = (jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)) for seed in (0, 1))
    plain = EvaluateSettings(
        texts={"text": "text.jsonl"},
        multiple_choice={"questions": "questions.jsonl"},
        probes="probes.jsonl",
        template="{question}",
        add_bos=True,
        batch_size=arguments.batch,
        dtype=arguments.dtype,
    )

    def settings(*names: str) -> EvaluateSettings:
        changed = functools.reduce(lambda a, b: a | b, (ALL[name] for name in names), {})
        changed |= {"discoverable": DiscoverableSettings()} if "discoverable" in changed else {}
        return dataclasses.replace(plain, **changed)

    def seconds(asked: EvaluateSettings) -> float:
        clock = CLOCKS[arguments.clock]
        begin = clock()
        placed = {"mesh": mesh, "name": "", "reference": (lambda: (config, other)) if asked.reference else None}
        suite.evaluate_model((config, params), folder, asked, folder.joinpath, folder / "out", **placed)
        return clock() - begin

    alone = () if arguments.both else ALL
    sides = {"without": settings(), "with": settings(*ALL)} | {name: settings(name) for name in alone}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name in list(sides)[:: (-1) ** number]:
            took = seconds(sides[name])
            found[name] += [took] * (number > 0)
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {
        "ratio": round(middle["with"] / middle["without"], 3),
        "seconds": {name: round(middle[name], 3) for name in ("without", "with")},
        "alone": {name: round(middle[name] - middle["without"], 3) for name in alone},
        "clock": arguments.clock,
        "device": jax.devices()[0].device_kind,
        "shape": arguments.preset or shape,
        "probes": arguments.probes,
    }


def write_data(arguments: argparse.Namespace, vocab_size: int, folder: pathlib.Path) -> None:
    """A tokenizer whose words are "w0", "w1", ..., and files of random ones, some 30 to a question."""
    import tokenizers

    from selftrain_jax.core.files import write_jsonl

    vocab = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, vocab_size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<|endoftext|>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(1, vocab_size, count))

    questions = [
        {"question": words(30), "choices": [words(4) for _ in range(4)], "gold": 0} for _ in range(arguments.questions)
    ]
    write_jsonl(folder / "questions.jsonl", questions)
    write_jsonl(folder / "text.jsonl", [{"text": words(1000)} for _ in range(max(arguments.text_tokens // 1000, 1))])
    ids = rng.integers(1, vocab_size, (arguments.probes, PREFIX + SUFFIX)).tolist()
    groups = [f"repeats={64 * (i % 2)}" for i in range(arguments.probes)]
    rows = [{"prefix": x[:PREFIX], "suffix": x[PREFIX:], "group": group} for x, group in zip(ids, groups)]
    write_jsonl(folder / "probes.jsonl", rows)


if __name__ == "__main__":
    main()
