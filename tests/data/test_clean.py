import json

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data import clean
from selftrain_jax.data.corpus import Document, read_corpus, write_corpus
from selftrain_jax.data.settings import AuditConfig

BIGRAMS = AuditConfig(ngram=2)
KINDS = pytest.mark.parametrize("kind, name", [("corpus", "corpus"), ("texts", "texts.jsonl")])
TEXTS = ["the cat sat", "a Dog ran!", "red sky", "", "dog ran home", "cat the"]
PROVENANCE = {"model": "m", "tokenizer_fingerprint": "f"}


@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "animals.jsonl", [{"question": "The cat?", "choices": ["dog, ran", "it"], "gold": 0}])
    write_jsonl(tmp_path / "sky.jsonl", [{"text": "blue sky"}])
    write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    # Ids are not positions: 10, 11, ...
    documents = [
        Document(10 + i, np.arange(i + 1, dtype=np.int32), np.full(i + 1, -1.0 - i, np.float32), "eos", text)
        for i, text in enumerate(TEXTS)
    ]
    write_corpus(tmp_path / "corpus", documents, PROVENANCE)
    return tmp_path


def benchmarks(files, *names):
    return {name: files / f"{name}.jsonl" for name in names}


def kept(directory, text):
    return [(d.id, d.text) for d in clean.kept_documents(directory, text)[0]]


def test_what_is_kept_lacks_exactly_the_flagged_documents(files):
    out, text = files / "audit", clean.TrainingText(corpus=files / "corpus")
    out.mkdir()
    found = clean.audit_text(text, benchmarks(files, "animals", "sky"), BIGRAMS, out)
    # "the cat" and "dog ran" are bigrams of the question and of a choice; "cat the" is not, nor "red sky".
    assert found == {"num_documents": 6, "num_flagged": 3, "num_left_out": 3}
    assert [path.name for path in out.iterdir()] == ["audit.json"]
    assert kept(out, text) == [(12, "red sky"), (13, ""), (15, "cat the")]
    by_id = {d.id: d for d in read_corpus(files / "corpus")}
    documents, provenance = clean.kept_documents(out, text)
    for document in documents:
        np.testing.assert_array_equal(document.tokens, by_id[document.id].tokens)
        np.testing.assert_array_equal(document.log_probs, by_id[document.id].log_probs)
    assert provenance == PROVENANCE


def test_the_fields_of_a_row_are_one_text_unless_they_are_not_joined(files):
    """ "cat dog" runs over the seam of two fields."""
    write_jsonl(files / "texts.jsonl", [{"text": "a cat dog"}, {"text": "a dog"}])
    write_jsonl(files / "fields.jsonl", [{"first": "the cat", "second": "dog ran"}])
    for join, flagged in ((False, []), (True, [0])):
        (out := files / f"audit-{join}").mkdir()
        config, text = AuditConfig(ngram=2, join_fields=join), clean.TrainingText(texts=files / "texts.jsonl")
        clean.audit_text(text, {"fields": files / "fields.jsonl"}, config, out)
        assert json.loads((out / "audit.json").read_text())["flagged"] == flagged


def test_the_audit_is_on_record(files):
    out = files / "audit"
    out.mkdir()
    clean.audit_text(clean.TrainingText(files / "corpus"), benchmarks(files, "animals", "sky"), BIGRAMS, out)
    found = json.loads((out / "audit.json").read_text())
    assert (found["ngram"], found["threshold"], found["flagged"]) == (2, 1, [10, 11, 14])
    assert {name: counts["flagged_documents"] for name, counts in found["benchmarks"].items()} == {
        "animals": 3,
        "sky": 0,
    }
    histogram = found["nll_histogram"]
    before, after = np.array(histogram["before"]), np.array(histogram["after"])
    assert len(histogram["edges"]) == len(before) + 1
    # Document i costs 1 + i nats per token: every one falls in a bin of its own.
    low = np.array(histogram["edges"])[:-1]
    assert low[before == 1].tolist() == [1, 2, 3, 4, 5, 6] and before.sum() == 6
    assert low[after == 1].tolist() == [3, 4, 6] and after.sum() == 3


def test_an_imported_corpus_is_audited_without_a_likelihood(files):
    documents = [Document(i, np.arange(i + 1), None, "eos", text) for i, text in enumerate(TEXTS)]
    write_corpus(files / "imported", documents, PROVENANCE)
    out, text = files / "audit", clean.TrainingText(files / "imported")
    out.mkdir()
    assert clean.audit_text(text, benchmarks(files, "animals"), BIGRAMS, out)["num_flagged"] == 3
    assert kept(out, text) == [(2, "red sky"), (3, ""), (5, "cat the")]
    assert json.loads((out / "audit.json").read_text())["nll_histogram"] is None


def test_empty_rows_are_no_documents(tmp_path):
    """A document of no text would be BOS and EOS; the others keep their place, by which they are named."""
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"text": text} for text in ("a", "", "b", " \n", "\u200b", "c")])
    with pytest.warns(InputWarning, match="rows.jsonl: 3 of 6 texts are empty, and left out of training"):
        documents = clean.TrainingText(texts=path).documents()
    assert [(document.id, document.text) for document in documents] == [(0, "a"), (2, "b"), (5, "c")]


def test_a_text_file_is_read_past_the_flagged(files):
    out, text = files / "audit", clean.TrainingText(texts=files / "texts.jsonl")
    out.mkdir()
    found = clean.audit_text(text, benchmarks(files, "animals"), BIGRAMS, out)
    assert found == {"num_documents": 5, "num_flagged": 3, "num_left_out": 3}
    assert kept(out, text) == [(2, "red sky"), (5, "cat the")]
    assert clean.kept_documents(out, text)[1] is None
    assert [p.name for p in out.iterdir()] == ["audit.json"]


@KINDS
def test_a_text_that_changed_its_size_after_the_audit_is_refused(files, kind, name):
    out, text = files / "audit", clean.TrainingText(**{kind: files / name})
    out.mkdir()
    clean.audit_text(text, benchmarks(files, "animals"), BIGRAMS, out)
    other = {"corpus": files / "short", "texts": files / "sky.jsonl"}
    write_corpus(other["corpus"], list(read_corpus(files / "corpus"))[1:], PROVENANCE)
    with pytest.raises(InputError, match="documents, not the [56] that were audited in .*audit it again"):
        clean.kept_documents(out, clean.TrainingText(**{kind: other[kind]}))


@pytest.mark.parametrize("both", [{}, {"corpus": "a", "texts": "b"}])
def test_a_training_text_is_a_corpus_or_a_text_file(both):
    with pytest.raises(InputError, match="one of the two"):
        clean.TrainingText(**both)


@KINDS
def test_without_benchmarks_everything_passes(files, kind, name):
    out, text = files / "audit", clean.TrainingText(**{kind: files / name})
    out.mkdir()
    expected = [text for text in TEXTS if text or kind == "corpus"]
    found = clean.audit_text(text, {}, AuditConfig(), out)
    assert found == {"num_documents": len(expected), "num_flagged": 0, "num_left_out": 0}
    assert [text for _, text in kept(out, text)] == expected


@KINDS
def test_an_audit_that_leaves_nothing_is_refused_and_writes_nothing(files, kind, name):
    write_jsonl(files / "all.jsonl", [{"text": " ".join(TEXTS)}])
    write_jsonl(files / "texts.jsonl", [{"text": text} for text in TEXTS if text])
    documents = [d for d in read_corpus(files / "corpus") if d.text]
    (files / "corpus" / "manifest.json").unlink()
    for shard in (files / "corpus").glob("*array_record*"):
        shard.unlink()
    write_corpus(files / "corpus", documents, PROVENANCE)
    out = files / "audit"
    out.mkdir()
    with pytest.raises(InputError, match=r"ngram=1, threshold=1\) flagged all 5 documents of .*, none.*raise ngram"):
        clean.audit_text(
            clean.TrainingText(**{kind: files / name}), benchmarks(files, "all"), AuditConfig(ngram=1), out
        )
    assert list(out.iterdir()) == []


@KINDS
def test_a_broken_benchmark_is_refused_and_writes_nothing(files, kind, name):
    (files / "sky.jsonl").write_text('{"text": "blue sky"}\n{"text": "blue')
    out = files / "audit"
    out.mkdir()
    with pytest.raises(InputError, match="sky.jsonl, line 2"):
        clean.audit_text(clean.TrainingText(**{kind: files / name}), benchmarks(files, "animals", "sky"), BIGRAMS, out)
    assert list(out.iterdir()) == []
