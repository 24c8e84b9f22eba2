"""A corpus leaves as a data set that others read, and that says what it is."""

import json
import sys
import warnings

import numpy as np
import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.records import write_record
from selftrain_jax.data.corpus import CorpusWriter
from selftrain_jax.data.records import Document
from selftrain_jax.data.sources import open_source
from selftrain_jax.run.publish import publish

datasets = pytest.importorskip("datasets")
PROVENANCE = {"model": "/home/me/models/tiny|<b>", "start_ids": [0], "settings": {"seed": 3}}


def write(folder, provenance=PROVENANCE, measured=True, texts=("one two", "three \u2028 | four", "")):
    documents = []
    for number, text in enumerate(texts):
        tokens = np.arange(len(text.split()), dtype=np.int32)
        log_probs = np.full(len(tokens), -1.5, np.float32) if measured else None
        documents.append(Document(10 * number, tokens, log_probs, "length", text))
    writer = CorpusWriter(folder, len(documents), 2, ids=[document.id for document in documents])
    for index, ids in writer.missing_shards():
        writer.write_shard(index, [document for document in documents if document.id in ids])
    writer.finalize(provenance)
    return documents


def read(folder, tmp_path):
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("measured", [True, False])
def test_a_data_set_holds_every_document_as_it_is(tmp_path, measured):
    documents = write(tmp_path / "corpus", measured=measured)
    assert publish(tmp_path / "corpus", tmp_path / "out") == 3
    rows = list(read(tmp_path / "out", tmp_path))
    assert [(row["id"], row["text"], row["stop_reason"]) for row in rows] == [
        (d.id, d.text, "length") for d in documents
    ]
    assert [row["tokens"] for row in rows] == [d.tokens.tolist() for d in documents]
    log_probs = [d.log_probs.tolist() if measured else [] for d in documents]
    assert [row["log_probs"] or [] for row in rows] == log_probs
    assert {row["left_out"] for row in rows} == {None}
    with warnings.catch_warnings(action="error"):
        open_source(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "No audit lies beside this corpus" in card and "No benchmark" not in card, "another run may have looked"
    assert "## Licence" in card and "- synthetic" in card
    assert "/home/me" not in card and "`tiny\\|<b>`" in card and '"seed": 3' in card


def test_what_the_audit_left_out_is_marked_and_counted(tmp_path):
    folder = tmp_path / "run" / "sample" / "self" / "corpus"
    write(folder)
    audit = {"ngram": 8, "threshold": 1, "num_documents": 3, "num_left_out": 1, "left_out": [10]}
    audit["benchmarks"] = {"arc|easy": {"flagged_documents": 2, "texts": 7}}
    place = tmp_path / "run" / "audit" / "self" / "audit.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(audit))
    write_record(folder.parent / "manifest.json", {"settings": {}, "inputs": {}}, fingerprint="a")
    for inputs in ({}, {"sample/self": "b"}):  # copied by itself, and of another corpus
        write_record(place.parent / "manifest.json", {"settings": {}, "inputs": inputs}, fingerprint="c")
        with pytest.raises(InputError, match="nothing tells whether .*audit/self is the audit of .*sample/self/corpus"):
            publish(folder, tmp_path / "out")
    write_record(place.parent / "manifest.json", {"settings": {}, "inputs": {"sample/self": "a"}}, fingerprint="c")
    publish(folder, tmp_path / "out")
    assert read(tmp_path / "out", tmp_path)["left_out"] == [False, True, False]
    with pytest.warns(InputWarning, match="1 of its texts are marked left_out"):
        assert len([*open_source(tmp_path / "out").texts("text")]) == 3
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    (tmp_path / "link").symlink_to(folder)
    publish(tmp_path / "link", tmp_path / "through a link")
    linked = (tmp_path / "through a link" / "README.md").read_text("utf-8")
    assert linked.replace("`through a link`", "`out`") == card
    assert read(tmp_path / "through a link", tmp_path)["left_out"] == [False, True, False]
    assert "1 of 3 were left out" in card and "| `arc\\|easy` | 2 | 7 |" in card
    place.write_text(json.dumps(audit | {"num_left_out": 0, "left_out": [], "benchmarks": {}}))
    publish(folder, tmp_path / "none named")
    assert "No benchmark was looked for" in (tmp_path / "none named" / "README.md").read_text("utf-8")
    place.write_text(json.dumps(audit | {"num_documents": 4}))
    with pytest.raises(InputError, match="has 3 documents, not the 4 that were audited"):
        publish(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_of_accumulated_text_the_newest_alone_is_called_the_models(tmp_path):
    write(tmp_path / "corpus", PROVENANCE | {"accumulated": 2})
    publish(tmp_path / "corpus", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "3 documents, 5 tokens, of 2 corpora, the newest of which was written by `tiny" in card


def test_imported_text_is_not_called_a_models(tmp_path):
    write(tmp_path / "corpus", {"source": "texts.jsonl", "tokenizer": "m"}, measured=False)
    publish(tmp_path / "corpus", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "written by another generator." in card and "synthetic" not in card and "prompt" not in card


def test_what_cannot_be_published_is_one_line(tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert cli.main(["publish", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    write(tmp_path / "corpus")
    assert "none" in refused(tmp_path / "none", tmp_path / "out")
    assert "--public says" in refused(tmp_path / "corpus", tmp_path / "out", "--public")
    assert "HF_HUB_OFFLINE" in refused(tmp_path / "corpus", tmp_path / "out", "--push=me/made")
    assert not (tmp_path / "out").exists()
    assert cli.main(["publish", str(tmp_path / "corpus"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"Hugging Face data set: {tmp_path / 'out'}, 3 documents\n"
    assert "exists and is not empty" in refused(tmp_path / "corpus", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'selftrain_jax[datasets]'" in refused(tmp_path / "corpus", tmp_path / "other")
