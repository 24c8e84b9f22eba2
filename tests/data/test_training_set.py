import dataclasses
import json
import pathlib
import shutil
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data import clean, training_set
from selftrain_jax.data.corpus import Document, write_corpus
from selftrain_jax.data.external import import_corpus
from selftrain_jax.data.packing import pack
from selftrain_jax.data.settings import AuditConfig, SubsetConfig
from selftrain_jax.data.training_set import (
    check_budget,
    read_documents,
    read_subset,
    read_training_texts,
    student_documents,
    write_subset,
)
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.models.files.tokenizer import load_tokenizer, tokenizer_fingerprint

LENGTH = 16
SETTINGS = SubsetConfig(num_tokens=LENGTH * 12 + 1, num_subsets=2, seed=5, retokenize=False)


@pytest.fixture(scope="module")
def documents(world):
    """Ten documents of the world, the even ones closed by end-of-text, the odd ones cut."""
    tokens, offsets = generate_documents(world, 10)
    texts = document_texts(world, tokens, offsets)
    return [
        Document(i, t if i % 2 == 0 else t[:-1], np.zeros(len(t) - i % 2, np.float32), ("eos", "length")[i % 2], text)
        for i, (t, text) in enumerate(zip(np.split(tokens, offsets[1:-1]), texts))
    ]


@pytest.fixture
def audited(documents, model_directory, tmp_path):
    fingerprint = tokenizer_fingerprint(model_directory)
    size = len(load_tokenizer(model_directory))
    write_corpus(tmp_path / "corpus", documents, {"tokenizer_fingerprint": fingerprint, "vocab_size": size})
    (tmp_path / "audited").mkdir()
    text = clean.TrainingText(corpus=tmp_path / "corpus")
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    return tmp_path / "audited", text


@pytest.fixture
def audited_texts(documents, tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", [{"text": d.text} for d in documents])
    (tmp_path / "audited_texts").mkdir()
    text = clean.TrainingText(texts=tmp_path / "texts.jsonl")
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited_texts")
    return tmp_path / "audited_texts", text


@pytest.fixture
def foreign(model_directory, tmp_path):
    """The same model with another tokenizer: the ids of all ordinary words are shifted by one."""
    shutil.copytree(model_directory, tmp_path / "foreign")
    path = tmp_path / "foreign" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    size = len(vocab)
    tokenizer["model"]["vocab"] = {w: i if i < 2 else 2 + (i - 1) % (size - 2) for w, i in vocab.items()}
    path.write_text(json.dumps(tokenizer))
    return tmp_path / "foreign"


def write(audited, student, directory, settings=SETTINGS, index=0):
    """`audited` is the folder of an audit and the text that it read."""
    directory.mkdir()
    return write_subset(*audited, student, settings, index, LENGTH, directory)


def split(directory):
    """The packed documents again: BOS + tokens of each."""
    rows = read_subset(directory)
    stream = np.concatenate([rows.tokens[:, :-1].ravel(), rows.tokens[-1, -1:]])
    segments = np.concatenate([rows.segment_ids[:, :-1].ravel(), rows.segment_ids[-1, -1:]])
    return np.split(stream, np.flatnonzero(np.diff(segments)) + 1)


@pytest.mark.parametrize("kind", ["ids", "text of the corpus", "text file"])
def test_a_subset_has_exactly_its_budget(audited, audited_texts, model_directory, tmp_path, kind):
    settings = SubsetConfig(num_tokens=SETTINGS.num_tokens, num_subsets=2, retokenize=kind == "text of the corpus")
    found = write(audited_texts if kind == "text file" else audited, model_directory, tmp_path / "s", settings)
    rows = read_subset(tmp_path / "s")
    assert rows.tokens.shape == rows.segment_ids.shape == (12, LENGTH + 1)
    assert (found["num_rows"], found["dropped_tokens"], found["num_tokens"]) == (12, 0, SETTINGS.num_tokens)
    assert len(np.concatenate([*read_documents(tmp_path / "s")])) + found["num_documents"] == SETTINGS.num_tokens
    assert 1 < found["num_distinct"] <= min(found["num_documents"], 10)


def test_copies_in_a_text_are_no_different_documents(documents, model_directory, tmp_path):
    write_jsonl(tmp_path / "copies.jsonl", [{"text": d.text} for d in documents[:3]] * 40)
    (tmp_path / "audited").mkdir()
    text = clean.TrainingText(texts=tmp_path / "copies.jsonl")
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    settings = dataclasses.replace(SETTINGS, num_tokens=LENGTH * 24 + 1, replacement=False)
    with pytest.warns(InputWarning, match="holds each of 3 documents .* times on average"):
        found = write((tmp_path / "audited", text), model_directory, tmp_path / "s", settings)
    assert found["num_distinct"] == 3
    with pytest.raises(InputError, match="more than max_repetitions=2"):
        write(
            (tmp_path / "audited", text),
            model_directory,
            tmp_path / "t",
            dataclasses.replace(settings, max_repetitions=2),
        )


@pytest.mark.parametrize("at_once", [1, 3, 1024])
def test_sampled_ids_are_trained_on_as_they_are(monkeypatch, audited, model_directory, documents, tmp_path, at_once):
    """Every document is BOS and then a sampled one, with EOS only where EOS was sampled; the last may be cut."""
    monkeypatch.setattr(training_set, "_AT_ONCE", at_once)
    write(audited, model_directory, tmp_path / "s")
    *whole, last = split(tmp_path / "s")
    known = {tuple(d.tokens) for d in documents}
    assert whole and all(d[0] == 0 and tuple(d[1:]) in known for d in whole)
    assert any(tuple(last[1:]) == k[: len(last) - 1] for k in known)
    assert [d[1:].tolist() for d in (*whole, last)] == [d.tolist() for d in read_documents(tmp_path / "s")]


def corpus_of(documents, student, folder):
    """The folder of an audit of a corpus of these documents, and the corpus."""
    write_corpus(folder / "corpus", documents, {"tokenizer_fingerprint": tokenizer_fingerprint(student)})
    (folder / "audited").mkdir()
    text = clean.TrainingText(corpus=folder / "corpus")
    clean.audit_text(text, {}, AuditConfig(), folder / "audited")
    return folder / "audited", text


@pytest.mark.parametrize("beyond", [-1, 0, 15, 16])
def test_ids_that_the_student_does_not_have_are_refused(documents, model_directory, tmp_path, beyond):
    """A gather beyond the embedding would take its last row without a word; the 16 rows before it stand for nothing."""
    size = len(load_tokenizer(model_directory).get_vocab())
    drawn = Document(1, np.array([3, size + beyond, 0], np.int32), None, "eos", "")
    made = corpus_of([drawn], model_directory, tmp_path)
    if beyond < 0:
        assert student_documents(*made, model_directory, False)[1][0].tolist() == drawn.tokens.tolist()
    else:
        with pytest.raises(InputError, match=f"document 1: it holds other ids than the {size} that the student's"):
            student_documents(*made, model_directory, False)


def with_added(model_directory, folder, token):
    """The same model and tokenizer.json, and a file beside it that adds `token`."""
    shutil.copytree(model_directory, folder)
    (folder / "added_tokens.json").write_text(json.dumps({token: len(load_tokenizer(model_directory).get_vocab())}))
    return folder


def test_a_token_that_a_file_beside_tokenizer_json_adds_belongs_to_the_tokenizer(model_directory, tmp_path):
    source, other = (with_added(model_directory, tmp_path / name, f"<{name}>") for name in ("source", "other"))
    assert len({tokenizer_fingerprint(path) for path in (source, other, model_directory)}) == 3
    documents = [
        Document(0, np.array([3, load_tokenizer(source).get_vocab()["<source>"], 0], np.int32), None, "eos", "")
    ]
    made = corpus_of(documents, source, tmp_path)
    assert student_documents(*made, source, "auto")[1][0].tolist() == documents[0].tokens.tolist()
    for student in (other, model_directory):  # in which that id is another token, or none
        assert student_documents(*made, student, "auto")[1:][1]
        with pytest.raises(InputError, match="was made with another tokenizer"):
            student_documents(*made, student, False)
    (tmp_path / "plain").mkdir()
    made = corpus_of([Document(0, np.array([3, 2, 0], np.int32), None, "eos", "")], model_directory, tmp_path / "plain")
    assert not student_documents(*made, source, "auto")[2]  # the source of which has all ids of the corpus


def test_a_token_beside_tokenizer_json_is_refused_in_corpora_that_do_not_say_so(model_directory, tmp_path):
    """As those of earlier versions."""
    size = len(load_tokenizer(model_directory).get_vocab())
    made = corpus_of([Document(0, np.array([3, size, 0], np.int32), None, "eos", "")], model_directory, tmp_path)
    with pytest.raises(InputError, match="document 0: it holds other ids than"):
        student_documents(*made, model_directory, "auto")


@hypothesis.given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=40), st.booleans()), min_size=1, max_size=8))
def test_any_sampled_documents_are_trained_on(model_directory, drawn):
    """Of no token and of one, with EOS (0) within, cut or ended, and longer than a row."""
    documents = [
        Document(i, np.array(ids + [0] * ended, np.int32), None, "eos" if ended else "length", "")
        for i, (ids, ended) in enumerate(drawn)
    ]
    with tempfile.TemporaryDirectory() as folder:
        made = corpus_of(documents, model_directory, pathlib.Path(folder))
        tokens = student_documents(*made, model_directory, False)[1]
        assert [t.tolist() for t in tokens] == [d.tokens.tolist() for d in documents]
        settings = SubsetConfig(max_repetitions=1e9, num_tokens=1 + LENGTH, retokenize=False)
        found = write(made, model_directory, pathlib.Path(folder) / "s", settings)
        assert (found["num_rows"], found["dropped_tokens"]) == (1, 0)
        [row] = read_subset(pathlib.Path(folder) / "s").tokens
        stream = np.concatenate([*read_documents(pathlib.Path(folder) / "s")])
        assert row[0] == 0 and len(row) == LENGTH + 1 == len(stream) + found["num_documents"]


def test_every_document_ends_with_the_student_s_one_end(documents, model_directory, tmp_path):
    """Whichever of its stop tokens was drawn."""
    student = shutil.copytree(model_directory, tmp_path / "student")
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"eos_token_id": [0, 5]}))
    stopped = [dataclasses.replace(d, tokens=np.append(d.tokens[:-1], np.int32(5))) for d in documents[::2]]
    write_corpus(tmp_path / "corpus", stopped, {"tokenizer_fingerprint": tokenizer_fingerprint(student)})
    (tmp_path / "audited").mkdir()
    text = clean.TrainingText(corpus=tmp_path / "corpus")
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    _, found, _ = student_documents(tmp_path / "audited", text, student, False)
    assert [ids.tolist() for ids in found] == [d.tokens.tolist() for d in documents[::2]]
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}


def test_texts_are_tokenized_and_closed(audited_texts, model_directory, documents, tmp_path):
    write(audited_texts, model_directory, tmp_path / "s")
    *whole, _ = split(tmp_path / "s")
    tokenizer = load_tokenizer(model_directory)
    assert {tokenizer.decode(d[1:-1]) for d in whole} <= {d.text for d in documents}
    assert all(d[0] == d[-1] == 0 and 0 not in d[1:-1] for d in whole)


@pytest.mark.parametrize("kind", ["text of the corpus", "text file"])
def test_texts_are_tokenized_some_at_a_time(monkeypatch, audited, audited_texts, foreign, tmp_path, kind):
    """The ids of all would not fit into memory; the rows are the same."""
    of = audited if kind == "text of the corpus" else audited_texts
    settings = dataclasses.replace(SETTINGS, retokenize=True)
    write(of, foreign, tmp_path / "at once", settings)
    together, encode = [], training_set.encode_texts

    def counted(tokenizer, texts, ends):
        together.append(len(texts))
        return encode(tokenizer, texts, ends)

    monkeypatch.setattr(training_set, "encode_texts", counted)
    monkeypatch.setattr(training_set, "_AT_ONCE", 3)
    write(of, foreign, tmp_path / "some", settings)
    assert max(together) == 3 and len(together) > 1
    assert (tmp_path / "at once" / "rows.npz").read_bytes() == (tmp_path / "some" / "rows.npz").read_bytes()


def test_rows_are_the_packed_stream(audited, model_directory, tmp_path):
    write(audited, model_directory, tmp_path / "s")
    rows = read_subset(tmp_path / "s")
    packed = pack([d[1:] for d in split(tmp_path / "s")], bos_token_id=0, sequence_length=LENGTH)
    np.testing.assert_array_equal(rows.tokens, packed.tokens)
    np.testing.assert_array_equal(rows.segment_ids, packed.segment_ids)


def test_a_subset_is_a_function_of_its_number(audited, model_directory, tmp_path):
    for name, index in (("a", 0), ("b", 0), ("c", 1)):
        write(audited, model_directory, tmp_path / name, index=index)
    a, b, c = ((tmp_path / name / "rows.npz").read_bytes() for name in "abc")
    assert a == b != c


def test_another_tokenizer_is_refused_with_the_way_out(audited, foreign, tmp_path):
    with pytest.raises(InputError, match="another tokenizer .*subset.retokenize=True"):
        write(audited, foreign, tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_another_tokenizer_reads_the_same_text(audited, foreign, documents, tmp_path):
    settings = SubsetConfig(num_tokens=SETTINGS.num_tokens, num_subsets=1, retokenize=True)
    write(audited, foreign, tmp_path / "s", settings)
    tokenizer = load_tokenizer(foreign)
    *whole, _ = split(tmp_path / "s")
    ended = {d.text for d in documents if d.stop_reason == "eos"}
    cut = {d.text for d in documents} - ended
    closed = {tokenizer.decode(d[1:-1]) for d in whole if d[-1] == 0}
    assert closed and closed <= ended and {tokenizer.decode(d[1:]) for d in whole if d[-1] != 0} <= cut
    assert not {tuple(d[1:]) for d in whole} & {tuple(d.tokens) for d in documents}


def test_a_special_token_inside_a_text_ends_nothing(documents, model_directory, tmp_path):
    """A word-level tokenizer knows no such word once it is not read as a token."""
    words = [d.text.split() for d in documents]
    write_jsonl(tmp_path / "texts.jsonl", [{"text": " ".join([*w[:3], "x<|endoftext|>y", *w[3:]])} for w in words])
    (tmp_path / "audited").mkdir()
    text = clean.TrainingText(texts=tmp_path / "texts.jsonl")
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    write((tmp_path / "audited", text), model_directory, tmp_path / "s")
    assert all(d[0] == d[-1] == 0 and 0 not in d[1:-1] for d in split(tmp_path / "s")[:-1])


def test_training_texts_are_the_documents_as_far_as_the_rows_reach(audited, model_directory, documents, tmp_path):
    """Also those that a row's end cuts in two, and those that end without an end of text."""
    write(audited, model_directory, tmp_path / "s")
    found = list(read_training_texts(tmp_path / "s", model_directory))
    rows, known = read_subset(tmp_path / "s"), {d.text for d in documents}
    assert len(found) == rows.segment_ids.max() + 1 > len(rows.tokens) / 4
    whole = [text for text in found if text in known]
    assert len(whole) >= len(found) - 1  # the last is cut by the budget
    assert any(text.startswith(found[-1]) for text in known)


def test_flagged_documents_are_never_drawn(documents, model_directory, tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", [{"text": d.text} for d in documents])
    write_jsonl(tmp_path / "benchmark.jsonl", [{"text": documents[3].text}, {"text": documents[4].text}])
    (tmp_path / "audited").mkdir()
    text = clean.TrainingText(texts=tmp_path / "texts.jsonl")
    found = clean.audit_text(text, {"b": tmp_path / "benchmark.jsonl"}, AuditConfig(), tmp_path / "audited")
    assert 2 <= found["num_flagged"] < 10
    settings = SubsetConfig(num_tokens=2_000, num_subsets=1)
    write((tmp_path / "audited", text), model_directory, tmp_path / "s", settings)
    tokenizer = load_tokenizer(model_directory)
    texts = {tokenizer.decode(d[1:-1]) for d in split(tmp_path / "s")[:-1]}
    assert documents[3].text not in texts and documents[4].text not in texts
    assert len(texts) == 10 - found["num_flagged"]


def test_a_text_that_the_student_cannot_read_is_warned_of(model_directory, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "\u6570 \u5b66 \u6570"}) + "\n")
    text = clean.TrainingText(texts=tmp_path / "t.jsonl")
    (tmp_path / "audited").mkdir()
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    settings = SubsetConfig(num_tokens=LENGTH + 1, num_subsets=1, max_repetitions=LENGTH)
    with pytest.warns(InputWarning, match="t.jsonl: 100.0% of it is unknown to the tokenizer"):
        assert write((tmp_path / "audited", text), model_directory, tmp_path / "s", settings)["unknown_share"] == 1


def test_what_is_unknown_is_looked_for_from_the_first_document_to_the_last(documents, model_directory, tmp_path):
    write_jsonl(tmp_path / "t.jsonl", [{"text": documents[0].text}] * 1_100 + [{"text": "\u6570 \u5b66"}] * 1_100)
    text = clean.TrainingText(texts=tmp_path / "t.jsonl")
    (tmp_path / "audited").mkdir()
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    tokens = student_documents(tmp_path / "audited", text, model_directory, "auto")[1]
    settings = SubsetConfig(
        num_tokens=sum(map(len, tokens)) + 2_200, num_subsets=1, replacement=False, max_repetitions=2_200
    )
    with pytest.warns(InputWarning, match="of it is unknown to the tokenizer"):
        found = write((tmp_path / "audited", text), model_directory, tmp_path / "s", settings)
    known = len("".join(documents[0].text.split()))
    assert found["unknown_share"] == pytest.approx(2 / (2 + known), rel=1e-6)


def test_an_imported_corpus_that_the_student_cannot_read_is_warned_of(model_directory, tmp_path):
    """Also where it is of the student's own tokenizer, which made unknown tokens of it."""
    write_jsonl(tmp_path / "t.jsonl", [{"text": "\u6570 \u5b66 \u6570"}] * 2)
    with pytest.warns(InputWarning, match="t.jsonl: 100.0% of it is unknown to the tokenizer"):
        import_corpus(tmp_path / "t.jsonl", tmp_path / "corpus", model_directory)
    text = clean.TrainingText(corpus=tmp_path / "corpus")
    (tmp_path / "audited").mkdir()
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audited")
    settings = SubsetConfig(num_tokens=LENGTH + 1, num_subsets=1, max_repetitions=LENGTH)
    with pytest.warns(InputWarning, match="corpus: 100.0% of it is unknown to the tokenizer"):
        found = write((tmp_path / "audited", text), model_directory, tmp_path / "s", settings)
    assert found["unknown_share"] == 1 and not found["retokenized"]


def test_a_budget_is_not_met_by_repeating_a_few_documents(audited_texts, model_directory, tmp_path):
    settings = SubsetConfig(num_tokens=10**5, num_subsets=1)
    with pytest.raises(InputError, match=f"of {audited_texts[1].texts} holds each of .* raise subset.max_repetitions"):
        write(audited_texts, model_directory, tmp_path / "s", settings)


@pytest.mark.parametrize("kind", ["corpus", "texts"])
def test_too_few_documents_for_a_budget_are_told_before_any_audit(audited, audited_texts, model_directory, kind):
    text = (audited if kind == "corpus" else audited_texts)[1]
    check_budget(text, model_directory, SubsetConfig(num_tokens=100))
    for changed, message in (({}, "holds each of 1. documents"), ({"replacement": False}, "is more than the")):
        with pytest.raises(InputError, match=f"subset num_tokens=100000 .*{message}"):
            check_budget(text, model_directory, SubsetConfig(num_tokens=10**5, **changed))


def test_too_small_a_corpus_without_replacement_is_refused(audited, model_directory, tmp_path):
    settings = SubsetConfig(num_tokens=10**6, num_subsets=1, replacement=False)
    with pytest.raises(InputError, match="num_tokens=1000000"):
        write(audited, model_directory, tmp_path / "s", settings)
