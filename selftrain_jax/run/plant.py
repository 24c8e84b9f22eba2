"""The stages that plant sequences in the student: the text, the planted model, and its twin."""

import dataclasses
import functools
import pathlib
import shutil
from typing import Any, Iterator

from selftrain_jax.run.names import ENDS, RunNames
from selftrain_jax.run.stages import Stage
from selftrain_jax.training.metrics import training_progress


def plant_stages(run: RunNames, wandb: str, profile: bool) -> Iterator[Stage]:
    """`plant/text`, `plant/planted` and `plant/twin`; none where nothing is planted.

    `wandb` and `profile` are those of `training.loop.train`.
    """
    if run.config.plant is None:
        return
    plant, base = run.config.plant, run.untouched
    files = {"text": plant.text, "passages": plant.passages}

    def write(directory: pathlib.Path) -> dict[str, Any]:
        from selftrain_jax.lab.plant.text import write_planted_text

        return write_planted_text(plant, run.model_path(base), run.path, directory)

    settings = dataclasses.asdict(plant) | {"base": base}
    # The order of rows and all that follows is the trainings' own.
    settings["train"] = {"sequence_length": plant.train.sequence_length}
    yield Stage(
        "plant/text",
        settings,
        run.lab_stages(base, *files.values()),
        write,
        lambda: run.file_inputs(files),
        lambda: run.rows_input("base", base),
        unnoted=((ENDS.format("base"),),),
    )
    for name in ("planted", "twin"):
        yield Stage(
            f"plant/{name}",
            dataclasses.asdict(plant.train) | {"base": base},
            ["plant/text", *run.lab_stages(base)],
            functools.partial(_train, run, name, wandb, profile),
            models=lambda: run.model_input("base", base),
            together=True,
            progress=functools.partial(training_progress, epochs=1),
        )


def _train(run: RunNames, name: str, wandb: str, profile: bool, directory: pathlib.Path) -> None:
    """Trains one of the two and leaves it as a Hugging Face directory, as the lab does with its models."""
    from selftrain_jax.data.training_set import read_subset
    from selftrain_jax.distributed import job
    from selftrain_jax.models import hf
    from selftrain_jax.training.checkpoint import restore_params
    from selftrain_jax.training.loop import train

    base, plant, saving = run.model_path(run.untouched), run.config.plant, run.saving(f"plant/{name}")
    config = hf.load_config(base)
    train(
        lambda: hf.load_pretrained(base, mesh=run.mesh)[1],
        config,
        read_subset(directory.parent / "text" / name),
        plant.train,
        directory,
        mesh=run.mesh,
        description=f"train {name}",
        wandb=wandb,
        profile=profile,
        **saving,
    )

    def save() -> None:
        shutil.rmtree(directory / "model", ignore_errors=True)  # a part of it, where sending it to a bucket was cut off
        hf.save_pretrained(directory / "model", config, restore_params(saving["checkpoints"], config), base)

    job.on_first(f"model of {name}", save)
