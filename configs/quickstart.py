"""The whole experiment in miniature, offline: a world, a model pre-trained on it, self-training, before and after.

Command:  selftrain run --config=configs/quickstart.py --workdir=runs/quickstart
Cost:     about 4 minutes on 2 CPU cores; no network, no GPU, 50 MB of disk.
Expect:   the base model extracts the sequences planted 64 and 128 times; after self-training almost none of the
          held-out ones, and so after training on real text; but more than half of their tokens stay right, and hardly
          any after real text. docs/quickstart.md has the figures of three seeds.

The base model reads 130,000 documents of a generated world once: facts about people, geography, additions, agreement,
and random word sequences planted 1 to 128 times. It then writes documents from BOS alone and is fine-tuned on them. Two
controls train on as many tokens: fresh real text of the world, and the text of a model of another recipe.

Another world, models, samples and order of training: get_config takes a seed, configs/quickstart.py:1.
"""

from ml_collections import ConfigDict


def get_config(seed: str = "0"):
    seed = int(seed)
    pretraining = dict(
        batch_size=32,
        grad_accum=4,  # slices of 512 tokens stay in a CPU's cache: 1.5 times as fast as the whole batch at once
        sequence_length=64,
        epochs=1,
        seed=seed,
        dtype="float32",
        remat=False,
        checkpoint_every=500,
        log_every=25,
        optimizer=dict(learning_rate=8e-3, warmup=0.05, beta2=0.99, weight_decay=1.0),
    )
    model = dict(hidden_size=80, num_layers=3, num_heads=5, max_position=64, num_documents=130_000)
    mixture = dict(facts=0.4, geography=0.06, two_step=0.25, arithmetic=0.36, grammar=0.12)
    return ConfigDict(
        dict(
            title="Quickstart: self-training in a generated world",
            source="lab:base",
            lab=dict(
                world=dict(
                    seed=seed,
                    num_people=128,
                    max_addend=30,
                    zipf_exponent=1.35,  # some people are hardly ever mentioned: recall of them leaves room above
                    sums_held_out=0.12,
                    two_step_held_out=0.25,
                    mixture=mixture,
                    repeats=(0, 1, 4, 16, 64, 128),
                    sequences_per_group=(64, 64, 64, 64, 64, 32),
                ),
                base=dict(model, seed=seed, train=pretraining),
                # Another recipe: half as much text, other proportions, no planted sequences, other initial weights.
                other=dict(
                    model,
                    seed=seed + 1000,
                    stream="other",
                    num_documents=50_000,
                    include_planted=False,
                    mixture=dict(facts=0.6, geography=0.1, two_step=0.1, arithmetic=0.1, grammar=0.1),
                    train=pretraining,
                ),
                validation_documents=500,
                control_documents=8_000,
            ),
            sample=dict(
                num_samples=8_000,
                seed=seed,
                batch_size=512,
                shard_size=2048,
                dtype="float32",
                temperature=1.0,
                min_new_tokens=4,
                max_new_tokens=63,
            ),
            # The models write much of the answers of "recall" and "two_step", which follow from what they read: without
            # those documents too little text is left, so they are counted, and capability is shown without their items.
            audit=dict(
                ngram=8,  # the longest question with its answer; all others are matched whole
                count_only=("recall", "two_step"),
                benchmarks={
                    name: f"lab:suites/{name}.jsonl" for name in ("recall", "two_step", "arithmetic", "minimal_pairs")
                },
            ),
            subset=dict(num_tokens=100_000, num_subsets=1, seed=seed, replacement=False),
            train=dict(
                batch_size=16,
                grad_accum=2,
                sequence_length=64,
                epochs=4,
                seed=seed,
                dtype="float32",
                remat=False,
                log_every=5,
                optimizer=dict(learning_rate=2e-3, beta2=0.99, weight_decay=0.1),
            ),
            evaluate=dict(
                texts=dict(validation="lab:validation.jsonl"),
                multiple_choice={name: f"lab:suites/{name}.jsonl" for name in ("recall", "two_step", "arithmetic")},
                minimal_pairs=dict(minimal_pairs="lab:suites/minimal_pairs.jsonl"),
                probes="lab:probes.jsonl",
                probes_chosen="planted",
                rules=("acc",),
                template="{question}",
                add_bos=True,
                batch_size=256,
                curve_points=6,
            ),
            controls=dict(real=dict(texts="lab:control.jsonl"), other=dict(source="lab:other")),
        ),
        type_safe=False,
    )
