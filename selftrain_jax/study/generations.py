"""The loop on its own output, from the second turn on: the trained model writes, and is trained on what it wrote."""

import dataclasses
import functools
import pathlib
import shutil
from typing import Iterator, Sequence

from selftrain_jax.core.files import Fingerprints
from selftrain_jax.data.corpus import Document, corpus_fingerprint, read_corpus, write_corpus
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.sample import sample_stage
from selftrain_jax.run.stages import Stage, fingerprints_of

MODEL = pathlib.PurePath("model", "hf")
ACCUMULATED = pathlib.PurePath("accumulated", "corpus")


def generation_stages(mode: str, turns: Sequence[Pipeline]) -> list[Stage]:
    """The stages of the last of `turns`: the model of the one before as a directory, then an ordinary run.

    Args:
      turns: of one student, mode and seed, in order; the first is the ordinary run whose main arm is generation 1.
    """
    pipeline = turns[-1]
    found = [_export(turns[-2])]
    if mode == "accumulate":
        model, sample = pipeline.workdir / MODEL, pipeline.config.sample
        found.append(sample_stage("sampled", str(model), lambda: model, sample, lambda: pipeline.mesh, ("model",)))
        sampled = [turn.workdir / "sampled" / "corpus" for turn in turns[1:]]
        found.append(_accumulate([pathlib.Path(turns[0].config.corpus), *sampled]))
    return [*found, *pipeline.stages()]


def _export(previous: Pipeline) -> Stage:
    model = f"{previous.main}-0"

    def work(directory):
        from selftrain_jax.run.export import export

        target = directory / MODEL.name
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that was cut short
        export(previous.workdir, target, model=model)

    def externals():
        return fingerprints_of(previous.workdir, trained=f"train/{model}")

    return Stage("model", {"model": model}, (), work, externals)


def _accumulate(corpora: Sequence[pathlib.Path]) -> Stage:
    """All documents of `corpora` as one corpus, newest provenance."""

    def work(directory):
        opened = [read_corpus(corpus) for corpus in corpora]
        provenance = opened[-1].manifest["provenance"] | {"accumulated": len(opened)}

        def documents() -> Iterator[Document]:
            every = (document for corpus in opened for document in corpus)
            return (dataclasses.replace(document, id=number) for number, document in enumerate(every))

        return write_corpus(directory / ACCUMULATED.name, documents(), provenance)

    def externals():
        looks = {str(n): functools.partial(corpus_fingerprint, corpus) for n, corpus in enumerate(corpora, 1)}
        return Fingerprints(looks)

    return Stage("accumulated", {"corpora": len(corpora)}, ("sampled",), work, externals)
