"""Where the time of sampling a corpus goes: decoding, compilation, moving rows and caches, and the rest.

    python benchmarks/corpus.py
    python benchmarks/corpus.py --preset=DIRECTORY --documents=512 --temperatures=0.7,1,1.25 --vocabularies=0

A corpus of `--documents` documents of at most `--length` tokens, from BOS, is drawn in waves of `--batch`, decoded to
text and written, by what `selftrain sample` calls; each corpus in a fresh process without a cache of compiled programs.
A preset has random weights and a tokenizer of `--vocabularies` words, of which one ends a document: about one token in
so many does. A directory is a model of one's own with its tokenizer (`--vocabularies=0`).

*idle*: of the rows times steps that the device took, those that gave no token of a document: it had ended, or the last
wave was not full. The other columns are shares of the time from the call to the finished corpus, after weights are
loaded: *decoding*, in the loop on the device; *compiling*; *moving*, rows dropped and caches grown between buckets;
*rest*, the host's, between the others. The last line is all of it as JSON."""

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import sides

SHARES = ("idle", "decoding", "compiling", "moving", "rest")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One corpus in this process."""
    import jax

    from selftrain_jax.data.generate import sample_corpus
    from selftrain_jax.distributed.mesh import make_mesh
    from selftrain_jax.models import hf
    from selftrain_jax.sampling import sampler
    from selftrain_jax.sampling.settings import SampleSettings

    seconds, row_steps = dict.fromkeys(("decoding", "moving"), 0.0), 0
    compiled: list[tuple[float, float]] = []  # from when to when: tracing, lowering, compiling

    def note(event: str, duration: float, **_) -> None:
        end = time.perf_counter()
        if event.startswith("/jax/core/compile/"):
            while compiled and compiled[-1][0] >= end - duration:  # within: a function called by one that is traced
                compiled.pop()
            compiled.append((end - duration, end))

    def compiling() -> float:
        return sum(end - begin for begin, end in compiled)

    def timed(kind: str, function):
        """`function`, whose arrays are waited for; what it compiles counts as that alone."""

        @functools.wraps(function)
        def call(*given, **named):
            begin, before = time.perf_counter(), compiling()
            result = jax.block_until_ready(function(*given, **named))
            seconds[kind] += time.perf_counter() - begin - (compiling() - before)
            return result

        return call

    decode = timed("decoding", sampler.decode_bucket)

    def decode_and_count(model, sampling, params, state, *rest):
        nonlocal row_steps
        first, rows = int(state.position), state.last.shape[0]
        result = decode(model, sampling, params, state, *rest)
        row_steps += rows * (int(result[0].position) - first)
        return result

    sampler.decode_bucket, sampler._next_bucket = decode_and_count, timed("moving", sampler._next_bucket)
    loaded = hf.load_pretrained

    def load(*given, **named):
        result = jax.block_until_ready(loaded(*given, **named))
        compiled.clear()
        load.done = time.perf_counter()
        return result

    hf.load_pretrained = load
    jax.monitoring.register_event_duration_secs_listener(note)
    settings = SampleSettings(
        temperature=arguments.temperature,
        min_new_tokens=arguments.least,
        max_new_tokens=arguments.length,
        num_samples=arguments.documents,
        batch_size=arguments.batch,
        dtype=arguments.dtype,
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(open(os.devnull, "w")):
        manifest = sample_corpus(arguments.directory, settings, pathlib.Path(folder) / "c", mesh=make_mesh(), name="m")
    total, tokens = time.perf_counter() - load.done, manifest["num_tokens"]
    shares = {kind: taken / total for kind, taken in {**seconds, "compiling": compiling()}.items()}
    return {
        "mean_length": tokens / arguments.documents,
        "seconds": total,
        "tokens_per_second": tokens / total,
        "idle": 1 - tokens / row_steps,
        **shares,
        "rest": 1 - sum(shares.values()),
        "device": jax.devices()[0].device_kind,
    }


def _several(kind):
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pythia-14m", help="a published size with random weights, or a directory")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the preset has")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--documents", type=_several(int), default=[64, 256, 1024], metavar="N,...")
    parser.add_argument("--vocabularies", type=_several(int), default=[50, 200], metavar="N,...")
    parser.add_argument("--temperatures", type=_several(float), default=[1.0], metavar="T,...")
    parser.add_argument("--length", type=int, default=256, help="most tokens of a document")
    parser.add_argument("--least", type=int, default=0, help="least tokens of a document")
    parser.add_argument("--batch", type=lambda text: text if text == "auto" else int(text), default=64)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(argparse.Namespace(**json.loads(arguments.one)))))
        return
    print("documents  words  temperature  mean length  tokens/s  seconds" + "".join(f"{name:>11}" for name in SHARES))
    rows, shared = [], ("dtype", "length", "least", "batch")
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        directory = os.path.join(folder, "model")
        sides.write_checkpoint(arguments.preset, directory, arguments.dtype, str(arguments.layers))
        for words, count, t in itertools.product(arguments.vocabularies, arguments.documents, arguments.temperatures):
            if words:
                sides.write_tokenizer(directory, ["<eos>", *(f"w{i}" for i in range(1, words))])
            asked = {name: getattr(arguments, name) for name in shared}
            asked |= {"directory": directory, "documents": count, "temperature": t}
            command = [sys.executable, __file__, f"--one={json.dumps(asked)}"]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=environment | {"PYTHONPATH": sides.PATHS}
            )
            row = {"documents": count, "words": words, "temperature": t} | json.loads(done.stdout.splitlines()[-1])
            numbers = f"{row['mean_length']:11.1f}  {row['tokens_per_second']:8,.0f}  {row['seconds']:7.1f}"
            shares = "".join(f"{row[name]:11.1%}" for name in SHARES)
            print(f"{count:9,}  {words:5}  {t:11g}  {numbers}{shares}", flush=True)
            rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
