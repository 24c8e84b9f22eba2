"""The stages that make models and corpora, for a run and for a study: pre-training in the lab, and sampling."""

import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING, Any, Callable, Collection, Iterable, Iterator, Mapping, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.lab import world_files
from selftrain_jax.lab.settings import LineageConfig
from selftrain_jax.models.files.fingerprints import model_inputs
from selftrain_jax.run.names import LAB
from selftrain_jax.run.stages import Stage
from selftrain_jax.sampling.settings import SampleSettings
from selftrain_jax.training.metrics import training_progress

if TYPE_CHECKING:
    from jax.sharding import Mesh


def lab_stages(
    lineage: LineageConfig,
    folder: str,
    mesh: "Callable[[], Mesh]",
    *,
    models: Collection[str],
    files: Mapping[str, str],
    saving: Callable[[str], dict[str, Any]] = lambda stage: {},
) -> Iterator[Stage]:
    """`folder`/world, and `folder`/MODEL for each of `models`.

    Args:
      files: setting -> file or model that it names; "lab:..." must be one of the lab's.
      saving: gives, for a stage, the arguments of `pretrain_model` that say where its checkpoints go.
    """
    world = f"{folder}/world"

    def write(directory: pathlib.Path) -> None:
        world_files.write_world(lineage, directory)
        check_named(lineage, files, (file.relative_to(directory).as_posix() for file in directory.rglob("*.jsonl")))

    yield Stage(world, lineage.world_settings(), (), write, functools.partial(world_files.world_inputs, lineage))
    for name in models:

        def pretrain(directory: pathlib.Path, name: str = name) -> None:
            from selftrain_jax.lab.pretrain import pretrain_model

            saved = saving(f"{folder}/{name}")
            pretrain_model(lineage, name, directory.parent / "world", directory, mesh=mesh(), **saved)

        settings = dataclasses.asdict(lineage.models[name])
        progress = functools.partial(training_progress, epochs=lineage.models[name].train.epochs)
        yield Stage(f"{folder}/{name}", settings, (world,), pretrain, together=True, progress=progress)


def check_named(lineage: LineageConfig, named: Mapping[str, str], made: Iterable[str]) -> None:
    """Raises `InputError` for a setting in `named` that names, by "lab:...", neither a model nor a file in `made`."""
    known = [*lineage.models, *sorted(file for file in made if file.endswith(".jsonl"))]
    for setting, value in named.items():
        if value.startswith(LAB) and value.removeprefix(LAB) not in known:
            raise InputError(f"setting {setting}={value!r}: the lab makes {', '.join(known)}")


def sample_stage(
    name: str,
    source: str,
    find: Callable[[], pathlib.Path],
    sample: SampleSettings,
    mesh: "Callable[[], Mesh]",
    after: Sequence[str] = (),
) -> Stage:
    """The stage in which a model writes a corpus.

    Args:
      source: the model as the settings name it; it stands in the corpus's manifest.
      find: its directory, asked for when the stage is reached.
      after: the stages that make the model; without them, its files count as an input.
    """
    settings = dataclasses.asdict(sample) | {"source": source}
    del settings["batch_size"]  # changes nothing, and may have to be lowered half-way
    shown = name.rpartition("/")[2]

    def work(directory):
        from selftrain_jax.data.generate import draw_shards
        from selftrain_jax.distributed.mesh import local_mesh

        draw_shards(find(), sample, directory / "corpus", mesh=local_mesh(mesh()), name=shown)

    def finish(directory):
        from selftrain_jax.data.generate import finish_corpus

        return finish_corpus(find(), sample, directory / "corpus", name=source)

    def machine():  # "auto" must not change in the middle of a corpus
        from selftrain_jax.data.generate import sampling_dtype

        return {"dtype": sampling_dtype(sample)}

    return Stage(
        name,
        settings,
        after,
        work,
        models=lambda: {} if after else model_inputs("source", find),
        machine=machine,
        grows=("num_samples",),
        together=True,
        finish=finish,
        progress=functools.partial(_progress, sample),
    )


def _progress(settings: SampleSettings, directory: pathlib.Path) -> str:
    """ "2,048 of 20,000 documents": how far the corpus in a stage's folder is; "" before its first shard."""
    shards = len(list((directory / "corpus").glob("corpus-*")))
    done, total = shards * settings.shard_size, settings.num_samples
    return f"{min(done, total):,} of {total:,} documents" if shards else ""
