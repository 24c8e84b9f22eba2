"""What a model's own text does to it, by temperature, learning rate and how well it was trained.

Command:  selftrain study --config=configs/map.py --workdir=studies/map
Cost:     an hour and a half of one CPU core: 120 trainings, 24 corpora and their evaluation 0.8 hours of it.
Expect:   heat maps of utility, held-out extraction left, likelihood and drift, per student. docs/results/map.md says
          what was found: own text helps in no cell, and most harm is done at low temperatures and high learning rates.

Two students in a generated world, both A_small of configs/lab.py: `quarter` reads a quarter of the ordinary documents
that `full` reads (in a third of the steps: both read every planted sequence as often). Each is trained on text of its
own alone, sampled at each temperature, and on real text, at each learning rate: one pass over as many tokens, no
document drawn twice. At temperature 1 the expected gradient is zero at the start: what that column changes is drift.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import lab  # noqa: E402


def get_config():
    config = lab.get_config()
    config.title = "Where self-made text helps: temperature, learning rate and how well the base was trained"
    small = config.lab.models["A_small"]
    config.lab.models = dict(full=small, quarter=dict(small, num_documents=small.num_documents // 4))
    config.models = {name: dict(family="A", recipe=name) for name in config.lab.models}
    config.students, config.sources = tuple(config.models), ()
    config.temperatures, config.learning_rates = (0.5, 0.7, 1.0, 1.25), (1e-4, 5e-4, 2e-3, 1e-2)
    config.shuffled = False
    config.lab.control_documents = config.sample.num_samples = 8_000
    config.sample.shard_size = 4_000
    config.subset.update(num_tokens=120_000, num_subsets=1)
    config.train.epochs = 1
    config.evaluate.curve_points = 0
    config.proxies.num_documents = 0
    config.generations.students = ()
    return config
