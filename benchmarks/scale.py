"""Time and peak memory of the stages that read a corpus, against the number of documents.

    python benchmarks/scale.py
    python benchmarks/scale.py --documents=10000,100000,1000000 --plot=benchmarks/scale.svg

Documents of 700 made-up tokens are written; audited against four made-up benchmarks (4,000 texts of 60 words); drawn
and packed as a subset of half of their tokens, for a student with their tokenizer and for one with another; 1,000
probes of 32 + 32 tokens are looked for in the first of these subsets, as reports and studies do for their tables; and
as many documents are imported from a JSON Lines file. Each stage is a fresh process.
Prints a row per stage and size, and as its last line all of them as JSON. A million documents take 12 GB of disk."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import sides

LENGTH, SHARD, END = 700, 4096, "<eos>"
STAGES = ("write", "audit", "subset", "retokenized", "held-out", "import")
STUDENTS = {"subset": "model", "retokenized": "stranger"}
PROBES, HALF = 1_000, 32


def prepare(directory: pathlib.Path) -> None:
    """A small model with a tokenizer of 2,000 words, one with a word more, and the benchmarks."""
    import jax
    import numpy as np

    from selftrain_jax.models import decoder, hf
    from selftrain_jax.models.config import DecoderConfig

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = [END, *dict.fromkeys("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(2_500))][:2_000]
    for name, spare in (("model", 0), ("stranger", 1)):
        entries = [*words, *(f"<spare-{i}>" for i in range(spare))]
        config = DecoderConfig(
            vocab_size=len(entries), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_position=2048
        )
        params = decoder.init_params(config, jax.random.key(0))
        hf.save_pretrained(directory / name, config, params)
        sides.write_tokenizer(directory / name, entries)
    for k in range(4):
        texts = (json.dumps({"text": made_up(rng, words, 60)[1]}) for _ in range(1_000))
        (directory / f"benchmark-{k}.jsonl").write_text("\n".join(texts))


def made_up(rng, words, length):
    """Token ids after Zipf's law, and the text that they are."""
    import numpy as np

    ids = (len(words) ** rng.random(length)).astype(np.int32)
    return ids, " ".join(words[i] for i in ids)


def run(stage: str, count: int, directory: pathlib.Path) -> None:
    """One stage in this process, which prints what it took."""
    import numpy as np

    from selftrain_jax.data.clean import TrainingText, audit_text
    from selftrain_jax.data.corpus import CorpusWriter, Document
    from selftrain_jax.data.external import import_corpus
    from selftrain_jax.data.settings import AuditConfig, SubsetConfig
    from selftrain_jax.data.training_set import read_documents, write_subset
    from selftrain_jax.evaluation.memorization import Probe, held_out
    from selftrain_jax.models.files.tokenizer import load_tokenizer, tokenizer_fingerprint

    corpus, model = directory / "corpus", directory / "model"
    text = TrainingText(corpus=corpus)
    words = load_tokenizer(model).convert_ids_to_tokens(range(2_000))
    texts = directory / "texts.jsonl"
    if stage == "import":
        with open(texts, "w") as f:
            for i in range(count):
                f.write(json.dumps({"text": made_up(np.random.default_rng(i), words, LENGTH)[1]}) + "\n")
    begin, begin_cpu = time.perf_counter(), time.process_time()
    if stage == "write":
        writer = CorpusWriter(corpus, count, SHARD)
        for index, ids in writer.missing_shards():
            rng = np.random.default_rng(index)
            drawn = ((i, *made_up(rng, words, LENGTH)) for i in ids)
            log_probs = np.full(LENGTH, -3, np.float32)
            writer.write_shard(index, [Document(i, tokens, log_probs, "length", t) for i, tokens, t in drawn])
        writer.finalize({"tokenizer_fingerprint": tokenizer_fingerprint(model), "vocab_size": len(words)})
    elif stage == "audit":
        (directory / "audit").mkdir()
        files = {f"b{k}": directory / f"benchmark-{k}.jsonl" for k in range(4)}
        audit_text(text, files, AuditConfig(), directory / "audit")
    elif stage in STUDENTS:
        settings, student = SubsetConfig(num_tokens=count * LENGTH // 2, num_subsets=1), directory / STUDENTS[stage]
        write_subset(directory / "audit", text, student, settings, 0, 2048, directory / stage)
    elif stage == "held-out":
        rng, tokenizer = np.random.default_rng(count), load_tokenizer(model)
        ids = (made_up(rng, words, 2 * HALF)[0] for _ in range(PROBES))
        probes = [Probe(drawn[:HALF], drawn[HALF:]) for drawn in ids]
        held_out(probes, read_documents(directory / "subset"), tokenizer, (8, 13, None))
    else:
        import_corpus(texts, directory / "imported", model)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": sides.proc("status", "VmHWM")}))


def plot(rows: list[dict], file: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for stage in STAGES:
        mine = [row for row in rows if row["stage"] == stage]
        counts = [row["documents"] for row in mine]
        left.plot(counts, [row["seconds"] for row in mine], marker="o", label=stage)
        right.plot(counts, [row["peak_bytes"] / 2**30 for row in mine], marker="o", label=stage)
    left.set(xlabel="documents of 700 tokens", ylabel="seconds", xscale="log", yscale="log")
    right.set(xlabel="documents of 700 tokens", ylabel="peak memory, GiB", xscale="log", ylim=(0, None))
    left.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", default="10000,100000", metavar="N,...")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--stage", choices=("prepare", *STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage == "prepare":
        return prepare(arguments.directory)
    if arguments.stage:
        return run(arguments.stage, int(arguments.documents), arguments.directory)
    rows = []
    for count in map(int, arguments.documents.split(",")):
        with tempfile.TemporaryDirectory() as directory:
            for stage in ("prepare", *STAGES):
                options = f"--stage={stage}", f"--documents={count}", f"--directory={directory}"
                command = [sys.executable, __file__, *options]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                if stage != "prepare":
                    rows.append({"stage": stage, "documents": count, **json.loads(done.stdout.splitlines()[-1])})
                    seconds, peak = rows[-1]["seconds"], rows[-1]["peak_bytes"] / 2**30
                    cpu = f"{rows[-1]['cpu_seconds'] / count * 1e3:.3f} ms of processor each"
                    print(f"{stage:12}{count:>10,} documents {seconds:9.1f} s, {cpu}, {peak:.2f} GiB", flush=True)
    if arguments.plot:
        plot(rows, arguments.plot)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
