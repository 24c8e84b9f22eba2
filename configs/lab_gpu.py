"""The paper's three findings on real text: lineages of Pythia's smallest shapes, pre-trained from scratch, on one GPU.

Command:  selftrain study --config=configs/lab_gpu.py --workdir=studies/lab_gpu --config.lab.text.source=DIRECTORY
Cost:     not measured; meant for one GPU and some 30 minutes. No network.
Expect:   not measured. The study says whether self-made text helps most and a relative's next, whether likelihood and
          similarity predict it, and whether extraction falls, as configs/lab.py does for generated worlds.

DIRECTORY holds English text: .jsonl files with a "text" field, or .txt files; a .jsonl(.gz) file and tfds:NAME do as
well. 300 MB fill the three shares of 100,000 documents that models read; of less text they read less, equally. What is
held out needs some 15 MB.

Every seed splits the text in another way and has four models: A_small (Pythia-14m's shape) and A_large (70m's) are one
lineage, the same documents in the same order; A_recipe has tokenizer and architecture of A, but read another share, in
another order, and no planted windows; B has another tokenizer, other switches of the architecture, and a third share.
Planted are windows of held-out documents, asked about are other held-out documents: which continuation, which word,
which word order is right.
"""

from ml_collections import ConfigDict

SMALL, LARGE = "pythia-14m", "pythia-70m"


def pretraining(seed: int) -> dict:
    return dict(
        batch_size=64,
        sequence_length=512,
        epochs=1,
        seed=seed,
        dtype="bfloat16",
        remat=False,
        checkpoint_every=500,
        log_every=50,
        optimizer=dict(learning_rate=1e-3, warmup=0.05, beta2=0.95, weight_decay=0.1),
    )


def get_config():
    model = dict(max_position=512, num_documents=100_000)
    suites = {name: f"lab:suites/{name}.jsonl" for name in ("continuation", "cloze")}
    pairs = {"word_order": "lab:suites/word_order.jsonl"}
    return ConfigDict(
        dict(
            title="Who should learn from whom? Lineages on real text",
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
                text=dict(
                    source="",
                    field="text",
                    split="train",
                    streams=("train", "recipe", "family"),
                    vocab_size=16_384,
                    max_document_tokens=256,
                    num_questions=1_000,
                    repeats=(0, 1, 4, 16, 64, 256),
                    sequences_per_group=(64, 64, 64, 64, 64, 32),
                    planted_length=64,
                    planted_prefix=32,
                ),
                models=dict(
                    A_small=dict(model, preset=SMALL, seed=0, train=pretraining(0)),
                    A_large=dict(model, preset=LARGE, seed=100, train=pretraining(0)),
                    A_recipe=dict(
                        model, preset=SMALL, seed=200, stream="recipe", include_planted=False, train=pretraining(200)
                    ),
                    B=dict(
                        model,
                        preset=SMALL,
                        seed=300,
                        stream="family",
                        tokenizer="bpe",
                        bpe_vocab_size=8_192,
                        parallel_residual=False,
                        rotary_pct=1.0,
                        tie_embeddings=True,
                        train=pretraining(300),
                    ),
                ),
                validation_documents=500,
                control_documents=4_000,
            ),
            real="lab:control.jsonl",
            shuffled=True,
            sample=dict(
                num_samples=4_000,
                batch_size="auto",
                shard_size=4_000,
                dtype="auto",
                temperature=1.0,
                min_new_tokens=8,
                max_new_tokens=256,
            ),
            audit=dict(ngram=8, benchmarks=dict(suites, **pairs)),
            # As in configs/pythia.py; 122 batches of 32 rows.
            subset=dict(num_tokens=122 * 32 * 256 + 1, num_subsets=1, replacement=True, retokenize="auto"),
            train=dict(
                batch_size=32,
                sequence_length=256,
                epochs=3,
                dtype="bfloat16",
                remat=False,
                log_every=10,
                optimizer=dict(learning_rate=2e-4, beta2=0.95, weight_decay=0.1),
            ),
            evaluate=dict(
                texts=dict(validation="lab:validation.jsonl"),
                multiple_choice=suites,
                minimal_pairs=pairs,
                probes="lab:probes.jsonl",
                probes_chosen="planted",
                rules=("acc",),
                template="{question}",
                add_bos=True,
                batch_size=256,
                curve_points=5,
                curve_items=256,
            ),
            proxies=dict(num_documents=512, gradient_rows=256),
            generations=dict(students=(), count=2, modes=("replace", "accumulate")),
        ),
        type_safe=False,
    )
