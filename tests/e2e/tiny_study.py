"""A study in half a minute: every unit and control of a study, too small to conclude from."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
import lab  # noqa: E402


def get_config():
    config = lab.get_config()
    config.title = "Tiny study"
    config.students, config.sources, config.seeds = ("A_small",), ("A_small", "B"), (0,)
    config.lab.world.update(num_people=8, max_addend=6, repeats=(0, 32), sequences_per_group=(4, 4))
    for name in ("A_large", "A_recipe"):
        del config.models[name], config.lab.models[name]
    for model in config.lab.models.values():
        model.update(hidden_size=16, num_layers=1, num_heads=2, num_documents=400)
        model.train.update(checkpoint_every=4)
    config.lab.update(validation_documents=20, control_documents=100)
    config.sample.update(num_samples=64, batch_size=32, shard_size=32, max_new_tokens=40)
    config.subset.update(num_tokens=64 * 8 * 2 + 1)
    config.train.update(epochs=2, batch_size=8, checkpoint_every=2, log_every=1)
    config.evaluate.update(batch_size=64, curve_points=2, curve_items=8)
    config.proxies.update(num_documents=16, gradient_rows=8)
    config.generations.update(count=2)
    return config
