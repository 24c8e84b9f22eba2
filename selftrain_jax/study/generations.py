"""The loop on its own output, from the second turn on: the trained model writes, and is trained on what it wrote."""

import dataclasses
import pathlib
import shutil
from typing import Iterator, Mapping

from selftrain_jax.data.corpus import corpus_fingerprint, read_corpus, write_corpus
from selftrain_jax.run.export import export
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.stages import Stage, read_manifest
from selftrain_jax.study.model import Generation, Run, sample_stage

MODEL = pathlib.PurePath("model", "hf")
ACCUMULATED = pathlib.PurePath("accumulated", "corpus")


def stages(generation: "Generation", chain: Mapping[int, "Generation"], first: "Run") -> list[Stage]:
    """The stages of one generation: the model of the one before as a directory, then an ordinary run.

    Args:
      chain: number -> generation of the same student, mode and seed, from 2 on.
      first: the run whose main arm is the first generation.
    """
    number, pipeline = generation.number, generation.pipeline
    previous = first.pipeline if number == 2 else chain[number - 1].pipeline
    found = [_export(previous)]
    if generation.mode == "accumulate":
        model = str(pipeline.workdir / MODEL)
        sampled = sample_stage("sampled", model, "", pipeline.config.sample, lambda: pipeline.mesh)
        found.append(dataclasses.replace(sampled, after=("model",)))
        earlier = [chain[n].pipeline.workdir / "sampled" / "corpus" for n in range(2, number + 1)]
        found.append(_accumulate([pathlib.Path(first.pipeline.config.corpus), *earlier]))
    return [*found, *pipeline.stages()]


def _export(previous: "Pipeline") -> Stage:
    model = f"{previous.main}-0"

    def work(directory):

        target = directory / MODEL.name
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that was cut short
        export(previous.workdir, target, model=model)

    def externals():

        return {"trained": read_manifest(previous.workdir, f"train/{model}")["fingerprint"]}

    return Stage("model", {"model": model}, (), work, externals)


def _accumulate(corpora: list[pathlib.Path]) -> Stage:
    """All documents of `corpora` as one corpus, newest provenance."""

    def work(directory):

        opened = [read_corpus(corpus) for corpus in corpora]
        provenance = opened[-1].manifest["provenance"] | {"accumulated": len(opened)}

        def documents() -> Iterator:
            number = 0
            for corpus in opened:
                for document in corpus:
                    yield dataclasses.replace(document, id=number)
                    number += 1

        return write_corpus(directory / ACCUMULATED.name, documents(), provenance)

    def externals():

        return {str(number): corpus_fingerprint(corpus) for number, corpus in enumerate(corpora, 1)}

    return Stage("accumulated", {"corpora": len(corpora)}, ("sampled",), work, externals)
