"""Memory that can be attributed: sequences planted a known number of times, their twin, and self-training of both.

Command:  selftrain run --config=configs/plant.py --workdir=runs/plant
Cost:     about 45 minutes on 2 CPU cores that eight other jobs shared; no network, no GPU, 60 MB of disk.
Expect:   base extracts 0, 0, 0, 4, 67 and 98 % of what was inserted 0, 1, 4, 16, 64 and 256 times, the twin nothing;
          docs/results/memory.md has the figures, one seed.

A model of the generated world of configs/quickstart.py, pre-trained without planted sequences, reads fresh text of that
world in which random words were inserted 0 to 256 times; its twin reads neutral text in their place. The planted model
then writes documents from BOS alone and is trained on them; the control trains on as much real text. `recovery` asks
whether what is lost is erased or only hidden.

For a model of your own: --config=family:MODEL with the settings of `plant` below, a text file and real kinds.
"""

import quickstart


def get_config(seed: str = "0"):
    config = quickstart.get_config(seed)
    config.title = "Planted in a generated world: erased or hidden?"
    config.lab.world.update(repeats=(0,), sequences_per_group=(8,))
    config.lab.base.update(include_planted=False, num_documents=40_000)
    config.lab.update(control_documents=60_000)
    training = dict(sequence_length=64, epochs=1, seed=int(seed), dtype="float32", remat=False)
    config.plant = dict(
        text="lab:control.jsonl",
        tokens=16 * 64 * 1000,
        kinds=("words",),
        counts=(0, 1, 4, 16, 64, 256),
        sequences=48,
        prefix_length=6,
        suffix_length=6,
        seed=int(seed),
        train=dict(
            training,
            batch_size=16,
            grad_accum=2,
            log_every=25,
            optimizer=dict(learning_rate=2e-3, beta2=0.99, weight_decay=0.1),
        ),
    )
    config.recovery = dict(
        steps=32,
        train=dict(
            training,
            batch_size=8,
            grad_accum=1,
            log_every=1,
            keep=1,
            optimizer=dict(learning_rate=1e-4, schedule="constant", warmup=0.0, beta2=0.99),
        ),
    )
    config.evaluate.update(probes="", nonmembers="repeats=0", curve_points=0)
    config.sample.num_samples = 6_000
    del config.controls["other"]
    return config
