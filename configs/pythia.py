"""Self-training of a real Pythia with the paper's settings: configs/pythia.py:SIZE, SIZE one of 14m ... 12b.

Command:  selftrain run --config=configs/pythia.py:410m --workdir=runs/pythia-410m \\
              --config.evaluate.probes=probes.jsonl --config.controls.real.texts=real.jsonl
Cost:     estimates in docs/launching.md. 20,000 documents of up to 1,024 tokens to sample, then 3 x 40 epochs over
          5 M tokens to train for every arm; meant for one large GPU up to 1.4b and for a pod slice beyond.
Expect:   the paper (arXiv 2605.31126) reports benchmarks kept and held-out extraction down by more than 95 %. This run
          measures whether that happens; without controls it cannot say why.

Settings follow the authors' public code where it states them: BOS prompt, temperature 1.25, 50 to 1,024 new tokens,
20,000 samples, 8-gram audit, 3 subsets of 5 M tokens with replacement, sequences of 2,048 tokens, batch 64, learning
rate 1e-6, cosine with 10 % warm-up, 40 epochs, bf16.

SIZE may be followed by a revision, as in 410m@step143000, or by "-deduped". A local directory works as well:
--config.source=DIRECTORY. Files to give, as --config.NAME=FILE:
  audit.benchmarks.NAME      benchmark texts to keep out of the corpus
  evaluate.texts.NAME        text sets for the perplexity
  evaluate.multiple_choice.NAME, evaluate.minimal_pairs.NAME
  evaluate.probes            extraction probes, see `selftrain probes --help`
"""

from ml_collections import ConfigDict

# Rows per device step that fit 80 GB with fp32 master weights and AdamW state (an estimate, not a measurement).
ROWS = {"14m": 64, "31m": 64, "70m": 64, "160m": 32, "410m": 16, "1b": 8, "1.4b": 8, "2.8b": 8, "6.9b": 8, "12b": 8}


def get_config(size: str = "410m"):
    size, _, revision = size.partition("@")
    shape = size.removesuffix("-deduped")
    if shape not in ROWS:
        raise ValueError(f"Pythia size {size!r} is unknown; choose one of {', '.join(ROWS)}, '-deduped' may follow")
    return ConfigDict(
        dict(
            source=f"EleutherAI/pythia-{size}",
            student="",
            revision=revision,
            mesh=dict(data=-1, fsdp=1, tensor=1),
            sample=dict(
                num_samples=20_000,
                seed=0,
                batch_size="auto",
                shard_size=1024,
                dtype="auto",
                start="auto",
                temperature=1.25,
                top_k=0,
                top_p=1.0,
                min_new_tokens=50,
                max_new_tokens=1024,
            ),
            audit=dict(ngram=8, threshold=1, benchmarks={}),
            subset=dict(num_tokens=5_000_000, num_subsets=3, seed=0, replacement=True, retokenize="auto"),
            train=dict(
                batch_size=64,
                grad_accum=64 // ROWS[shape],
                sequence_length=2048,
                epochs=40,
                seed=0,
                dtype="bfloat16",
                remat=True,
                document_boundaries=False,
                checkpoint_every=0,
                keep=2,
                log_every=10,
                optimizer=dict(
                    learning_rate=1e-6,
                    schedule="cosine",
                    warmup=0.1,
                    final_lr_ratio=0.0,
                    beta1=0.9,
                    beta2=0.999,
                    eps=1e-8,
                    weight_decay=0.0,
                    clip_norm=1.0,
                ),
            ),
            evaluate=dict(
                texts={},
                multiple_choice={},
                minimal_pairs={},
                probes="",
                probes_chosen="unknown",
                add_bos=False,
                held_out_ngram=8,
                batch_size=32,
                dtype="float32",
            ),
            controls={},
        ),
        type_safe=False,
    )
