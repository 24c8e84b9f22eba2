"""The texts of controls that are made from the real text."""

import dataclasses

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import Fingerprints, write_jsonl
from selftrain_jax.data.corpus import corpus_fingerprint, read_corpus
from selftrain_jax.data.texts import load_texts, shuffle_words
from selftrain_jax.lab.planted import mixed_order
from selftrain_jax.lab.settings import WorldConfig
from selftrain_jax.lab.world import build_world, fresh_sequences, holds_sentences
from selftrain_jax.run.stages import Stage

FILE = "texts.jsonl"


def shuffled_stage(name: str, real: str, seed: int) -> Stage:
    """The stage that writes `FILE`: the words of each text of `real` in a random order."""

    def work(directory):
        write_jsonl(directory / FILE, ({"text": text} for text in shuffle_words(load_texts(real), seed)))

    return Stage(name, {"seed": seed}, (), work, lambda: Fingerprints.of_files({"real": real}))


def fresh_stage(name: str, corpus: str, real: str, world: WorldConfig, seed: int) -> Stage:
    """The stage that writes `FILE`: the texts of `real` in their order, at random places among them random sequences of
    the planted kind that no model has seen: as many per word of other text, and as long, as `corpus` holds. Its result
    is {"counted", "fresh"}: their number in the corpus and in the file.

    It tells whether what self-training leaves of memory is owed to the mere kind of text that it repeats.
    """

    def work(directory):
        documents = [document.text for document in read_corpus(corpus)]
        lengths = {holds: [len(t.split()) for t in documents if holds_sentences(t) == holds] for holds in (True, False)}
        if not sum(lengths[True]):
            raise InputError(f"{name}: no document of {corpus} holds a sentence; set fresh=False")
        texts = load_texts(real)
        number = round(len(lengths[False]) * sum(len(text.split()) for text in texts) / sum(lengths[True]))
        mixed = [*texts, *fresh_sequences(build_world(world), np.resize(lengths[False], number), seed)]
        order = mixed_order(np.random.default_rng(seed), len(texts), number)
        write_jsonl(directory / FILE, ({"text": mixed[i]} for i in order))
        return {"counted": len(lengths[False]), "fresh": number}

    def externals():
        return Fingerprints({"corpus": lambda: corpus_fingerprint(corpus)}) | Fingerprints.of_files({"real": real})

    return Stage(name, {"world": dataclasses.asdict(world), "seed": seed}, (), work, externals)
