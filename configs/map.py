"""What self-training does, as a map: temperature x learning rate x how well the base was trained, in generated worlds.

Command:  selftrain study --config=configs/map.py --workdir=studies/map
Cost:     COST; no network, no GPU.
Expect:   docs/results/map.md says what it showed.

The worlds, texts and the model A_small are those of configs/lab.py. `full` is that model; `quarter` has the same
architecture and saw a quarter of the documents, in which the planted sequences stand as often. Each is trained on its
own text, sampled at four temperatures, and on as much real text, at four learning rates. At temperature 1 the expected
gradient of a model on its own text is zero: what changes there is drift.
"""

import lab
from ml_collections import ConfigDict


def get_config():
    config = lab.get_config()
    full = config.lab.models.A_small
    quarter = ConfigDict(full.to_dict())
    quarter.num_documents //= 4
    config.update(
        title="What self-training does: temperature, learning rate, and how well the base was trained",
        students=("full", "quarter"),
        sources=("full", "quarter"),
        relations=("self",),
        temperatures=(0.5, 0.7, 1.0, 1.25),
        budgets=(80_000,),
        learning_rates=(1e-4, 5e-4, 2e-3, 1e-2),
        shuffled=False,
    )
    config.proxies = None
    config.models = ConfigDict(dict(full=dict(family="A", recipe="full"), quarter=dict(family="A", recipe="quarter")))
    config.lab.models = ConfigDict(dict(full=full.to_dict(), quarter=quarter.to_dict()))
    config.subset.num_subsets = 1
    config.evaluate.curve_points = 0
    config.generations.update(students=(), count=1)
    return config
