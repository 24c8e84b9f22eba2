"""configs/smoke.py, smaller still: every stage runs in seconds, and every loop has a middle to be killed in."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
import smoke  # noqa: E402


def get_config():
    config = smoke.get_config()
    config.title = "Tiny"
    config.student = ""
    config.lab.world.update(max_addend=6, repeats=(0, 8, 32), sequences_per_group=(4, 4, 4))
    for model in (config.lab.base, config.lab.other):
        model.update(num_documents=600)
        model.train.update(checkpoint_every=4)
    config.lab.update(validation_documents=10, control_documents=100)
    config.sample.update(num_samples=64, batch_size=16, shard_size=4)
    config.subset.update(num_tokens=64 * 8 * 3 + 1, retokenize=False)
    config.train.update(epochs=4, checkpoint_every=2, log_every=1)
    config.evaluate.update(batch_size=64, suffix_lengths=(2,), curve_points=0)
    return config
