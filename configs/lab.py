"""The paper's three findings, tested on generated worlds: 3 students, 4 sources, 2 controls, 3 seeds, 2 trainings each.

Command:  selftrain study --config=configs/lab.py --workdir=studies/lab
Cost:     the stages took 2.9 hours in all on two busy CPU cores (docs/results/lab.md); no network, 1.3 GB of disk.
Expect:   the third finding is not reproduced, the others cannot be decided with three seeds (docs/results/lab.md).

Every seed is another world with four models, pre-trained from scratch on its texts: A_small and A_large are one lineage
(the same documents in the same order, two sizes); A_recipe has the tokenizer and architecture of A, but read other
proportions of the world's text, in another order, and no planted sequences; B has another tokenizer, other switches of
the architecture, and another share of the world's text. None is trained to the end: there is room to improve.

As two shards on one machine, one core each:
`taskset -c 0 selftrain study ... --shard 0/2` beside `taskset -c 1 selftrain study ... --shard 1/2`.
"""

from ml_collections import ConfigDict


def pretraining(seed: int, sequence_length: int) -> dict:
    return dict(
        batch_size=32 * 64 // sequence_length,
        sequence_length=sequence_length,
        epochs=1,
        seed=seed,
        dtype="float32",
        remat=False,
        checkpoint_every=500,
        log_every=50,
        optimizer=dict(learning_rate=8e-3, warmup=0.05, beta2=0.99, weight_decay=1.0),
    )


def get_config():
    small = dict(hidden_size=64, num_layers=3, num_heads=4, max_position=128, num_documents=60_000)
    large = dict(small, hidden_size=96, num_layers=4, num_heads=6)
    mixture = dict(facts=0.4, geography=0.06, two_step=0.25, arithmetic=0.36, grammar=0.12)
    suites = {name: f"lab:suites/{name}.jsonl" for name in ("recall", "two_step", "arithmetic")}
    return ConfigDict(
        dict(
            title="Who should learn from whom? Lineages in generated worlds",
            models=dict(
                A_small=dict(family="A", recipe="1"),
                A_large=dict(family="A", recipe="1"),
                A_recipe=dict(family="A", recipe="2"),
                B=dict(family="B", recipe="1"),
            ),
            students=("A_small", "A_large", "B"),
            sources=("A_small", "A_large", "A_recipe", "B"),
            seeds=(0, 1, 2),
            lab=dict(
                world=dict(
                    num_people=128,
                    max_addend=30,
                    sums_held_out=0.12,
                    two_step_held_out=0.25,
                    mixture=mixture,
                    repeats=(0, 1, 4, 16, 64, 128),
                    sequences_per_group=(64, 64, 64, 64, 64, 32),
                ),
                models=dict(
                    A_small=dict(small, seed=0, train=pretraining(0, 64)),
                    A_large=dict(large, seed=100, train=pretraining(0, 64)),
                    A_recipe=dict(
                        small,
                        seed=200,
                        stream="recipe",
                        include_planted=False,
                        mixture=dict(facts=0.3, geography=0.1, two_step=0.15, arithmetic=0.25, grammar=0.2),
                        train=pretraining(200, 64),
                    ),
                    B=dict(
                        small,
                        seed=300,
                        stream="family",
                        tokenizer="bpe",
                        bpe_vocab_size=384,
                        parallel_residual=False,
                        rotary_pct=1.0,
                        tie_embeddings=True,
                        mixture=dict(facts=0.5, geography=0.1, two_step=0.3, arithmetic=0.1, grammar=0.1),
                        train=pretraining(300, 128),
                    ),
                ),
                validation_documents=500,
                control_documents=6_000,
            ),
            real="lab:control.jsonl",
            shuffled=True,
            sample=dict(
                num_samples=5_000,
                batch_size=512,
                shard_size=2500,
                dtype="float32",
                temperature=1.0,
                min_new_tokens=4,
                max_new_tokens=110,
            ),
            # As in configs/quickstart.py: too little text is left without the answers of these two.
            audit=dict(
                ngram=8,  # the longest question with its answer; all others are matched whole
                count_only=("recall", "two_step"),
                benchmarks=dict(suites, minimal_pairs="lab:suites/minimal_pairs.jsonl"),
            ),
            subset=dict(num_tokens=80_000, num_subsets=2, replacement=False, retokenize="auto"),
            train=dict(
                batch_size=16,
                sequence_length=64,
                epochs=3,
                dtype="float32",
                remat=False,
                log_every=10,
                optimizer=dict(learning_rate=1e-3, beta2=0.99, weight_decay=0.1),
            ),
            evaluate=dict(
                texts=dict(validation="lab:validation.jsonl"),
                multiple_choice=suites,
                minimal_pairs=dict(minimal_pairs="lab:suites/minimal_pairs.jsonl"),
                probes="lab:probes.jsonl",
                probes_chosen="planted",
                rules=("acc",),
                template="{question}",
                add_bos=True,
                batch_size=256,
                curve_points=5,
                curve_items=128,
            ),
            proxies=dict(num_documents=512, gradient_rows=256),
            generations=dict(students=("A_small",), count=4, modes=("replace", "accumulate")),
        ),
        type_safe=False,
    )
