import json

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.corpus import Document, write_corpus
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.settings import WorldConfig
from selftrain_jax.lab.world import build_world, holds_sentences
from selftrain_jax.study.controls import fresh_stage

CONFIG = WorldConfig(repeats=(1, 2), sequences_per_group=6, seed=3)
WORLD = build_world(CONFIG)


def stage_over(tmp_path, written, real, seed=1):
    documents = [Document(i, np.zeros(1, np.int32), None, "eos", text) for i, text in enumerate(written)]
    write_corpus(tmp_path / "corpus", documents, {})
    write_jsonl(tmp_path / "real.jsonl", ({"text": text} for text in real))
    return fresh_stage("fresh", str(tmp_path / "corpus"), str(tmp_path / "real.jsonl"), CONFIG, seed)


def runs(text, n=5):
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_real_text_holds_as_many_random_words_in_a_row_as_the_models_own_text(tmp_path):
    """12 of 62 documents are of the planted kind, with 2 in 3 of the real text's words: 18 fresh ones, as long."""
    own, real = (document_texts(WORLD, *generate_documents(WORLD, n, f"{n}")) for n in (50, 75))
    planted = [text.prefix + text.suffix for text in WORLD.planted_texts()]
    planted[0] = " ".join(planted[0].split()[:7])
    stage = stage_over(tmp_path, [*own, *planted], real)
    found = stage.work(tmp_path)
    words = [sum(len(text.split()) for text in texts) for texts in (own, real)]
    assert found == {"counted": 12, "fresh": round(12 * words[1] / words[0])}
    texts = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").open()]
    fresh = [text for text in texts if not holds_sentences(text)]
    assert [text for text in texts if holds_sentences(text)] == list(real)
    lengths = [len(text.split()) for text in fresh]
    assert len(fresh) == found["fresh"] and set(lengths) == {7, CONFIG.planted_length} and 1 <= lengths.count(7) <= 2
    assert not {run for text in fresh for run in runs(text)} & {run for text in planted for run in runs(text)}
    before = (tmp_path / "texts.jsonl").read_bytes()
    stage.work(tmp_path)
    assert (tmp_path / "texts.jsonl").read_bytes() == before
    stage_over(tmp_path / "again", [*own, *planted], real, seed=2).work(tmp_path)
    assert (tmp_path / "texts.jsonl").read_bytes() != before


def test_what_holds_no_sequence_gets_none_and_what_holds_no_sentence_is_refused(tmp_path):
    stage = stage_over(tmp_path, ["anna smiled ."] * 3, ["bob slept ."])
    assert stage.work(tmp_path) == {"counted": 0, "fresh": 0}
    with pytest.raises(InputError, match="no document of .* holds a sentence; set fresh=False"):
        stage_over(tmp_path / "noise", ["anna bob"], ["bob slept ."]).work(tmp_path)
