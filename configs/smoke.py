"""The whole way in about a minute on two CPU cores: every stage runs, nothing is learned well enough to conclude from.

Command:  selftrain run --config=configs/smoke.py --workdir=runs/smoke
Cost:     about 75 s on 2 CPU cores the first time, most of it compilation; about 25 s afterwards; no network.
Expect:   a finished report; its figures mean nothing.
"""

import quickstart


def get_config():
    config = quickstart.get_config()
    config.title = "Smoke test: every stage, no conclusions"
    config.lab.world.update(num_people=16, repeats=(0, 16, 64), sequences_per_group=(8, 8, 8))
    for model in (config.lab.base, config.lab.other):
        model.update(hidden_size=32, num_layers=2, num_heads=2, num_documents=2_000)
        model.train.update(batch_size=32, grad_accum=2, checkpoint_every=20)
    config.lab.update(validation_documents=50, control_documents=400)
    config.sample.update(num_samples=300, batch_size=64, shard_size=100)
    config.subset.update(num_tokens=5_000)
    config.train.update(epochs=2, batch_size=8, grad_accum=2, checkpoint_every=5)
    return config
