import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.data import corpus as corpus_module
from selftrain_jax.data.corpus import CorpusWriter, Document, corpus_fingerprint, read_corpus, summarize, write_corpus

TEXTS = ("plain", "naïve “quotes” 🎉", "नमस्ते दुनिया", "", "nul \0 and\nnewline\0", "\ufeffmark")


def make_document(i, length=None):
    rng = np.random.default_rng(i)
    length = i % 7 if length is None else length
    return Document(
        id=i,
        tokens=rng.integers(0, 50_000, length).astype(np.int32),
        log_probs=-rng.exponential(3.0, length).astype(np.float32),
        stop_reason="eos" if i % 3 else "length",
        text=TEXTS[i % len(TEXTS)],
    )


def make_documents(n):
    return [make_document(i) for i in range(n)]


def assert_same(found, wanted):
    found, wanted = list(found), list(wanted)
    assert [d.id for d in found] == [d.id for d in wanted]
    for a, b in zip(found, wanted):
        assert (a.stop_reason, a.text) == (b.stop_reason, b.text)
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.log_probs, b.log_probs)
        assert (a.tokens.dtype, a.log_probs.dtype) == (np.int32, np.float32)


def fill(writer, documents):
    by_id = {d.id: d for d in documents}
    for index, ids in writer.missing_shards():
        writer.write_shard(index, [by_id[i] for i in ids])


def test_what_is_written_is_read_back(tmp_path):
    documents = make_documents(23)
    manifest = write_corpus(tmp_path / "c", documents, {"model": "m"}, shard_size=5)
    corpus = read_corpus(tmp_path / "c")
    assert len(corpus) == 23
    assert_same(corpus, documents)
    assert_same([corpus[i] for i in range(23)], documents)
    assert_same([corpus[-1], corpus[np.int64(3)]], [documents[-1], documents[3]])
    assert_same(corpus[4:19:3], documents[4:19:3])
    assert_same(corpus.take(np.array([22, 0, 22, 7])), [documents[i] for i in (22, 0, 22, 7)])
    assert corpus.manifest == manifest == json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["provenance"] == {"model": "m"}
    for outside in (23, -24):
        with pytest.raises(IndexError):
            corpus[outside]


def test_texts_are_read_alone(tmp_path):
    documents = make_documents(23)
    write_corpus(tmp_path / "c", documents, {}, shard_size=5)
    assert [(t.id, t.text) for t in read_corpus(tmp_path / "c").texts()] == [(d.id, d.text) for d in documents]


def test_documents_without_log_probabilities(tmp_path):
    """They come back without, also beside a document that has no tokens; nothing is averaged over them."""
    documents = [dataclasses.replace(make_document(i), log_probs=None) for i in range(1, 7)] + [make_document(7)]
    assert len(documents[-1].tokens) == 0
    manifest = write_corpus(tmp_path / "c", documents, {}, shard_size=3)
    assert manifest["nll"] is None and manifest["num_tokens"] == 21
    found = list(read_corpus(tmp_path / "c"))
    assert [d.log_probs is None for d in found] == [True] * 6 + [False]
    for a, b in zip(found, documents):
        np.testing.assert_array_equal(a.tokens, b.tokens)


def test_one_document_without_log_probabilities_leaves_the_corpus_without_a_likelihood():
    documents = make_documents(7)
    assert summarize(documents)["nll"] is not None
    assert summarize([*documents, dataclasses.replace(make_document(8), log_probs=None)])["nll"] is None


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    write_corpus(tmp_path / "a", make_documents(9), {"model": "m"}, shard_size=4)
    write_corpus(tmp_path / "b", make_documents(9), {"model": "m"}, shard_size=4)
    write_corpus(tmp_path / "c", make_documents(9), {"model": "n"}, shard_size=4)
    changed = make_documents(9)
    changed[5] = dataclasses.replace(changed[5], text="another")
    write_corpus(tmp_path / "d", changed, {"model": "m"}, shard_size=4)
    a, b, c, d = (corpus_fingerprint(tmp_path / name) for name in "abcd")
    assert a == b and len({a, c, d}) == 3


def test_plain_tfds_reads_the_corpus_without_tensorflow(tmp_path):
    documents = make_documents(11)
    write_corpus(tmp_path / "c", documents, {}, shard_size=4)
    script = textwrap.dedent("""
        import sys
        import numpy as np
        import tensorflow_datasets as tfds
        source = tfds.builder_from_directory(sys.argv[1]).as_data_source(split="train")
        for row in source:
            assert row["tokens"].dtype == np.int32 and row["log_probs"].dtype == np.float32
            assert row["tokens"].shape == row["log_probs"].shape and row["tokens"].ndim == 1
            print(repr((row["id"], row["tokens"].tolist(), row["log_probs"].tolist(), row["stop_reason"].decode(),
                        row["text"].decode())))
        assert "tensorflow" not in sys.modules
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    expected = [repr((d.id, d.tokens.tolist(), d.log_probs.tolist(), d.stop_reason, d.text)) for d in documents]
    assert done.stdout.splitlines() == expected


def test_records_are_those_that_tfds_would_write(tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    write_corpus(tmp_path / "c", make_documents(11), {})
    builder = tfds.builder_from_directory(tmp_path / "c")
    features = builder.info.features
    for record in builder.as_data_source("train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES):
        again = features.serialize_example(features.encode_example(features.deserialize_example_np(record)))
        assert tf_example_pb2.Example.FromString(again) == tf_example_pb2.Example.FromString(record)


def test_a_filtered_corpus_keeps_its_ids(tmp_path):
    kept = [d for d in make_documents(30) if d.id % 4]
    write_corpus(tmp_path / "c", kept, {}, shard_size=6)
    assert_same(read_corpus(tmp_path / "c"), kept)


def test_shards_cover_all_ids_once(tmp_path):
    shards = CorpusWriter(tmp_path / "c", 10, 4).missing_shards()
    assert [(index, list(ids)) for index, ids in shards] == [(0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (2, [8, 9])]


def test_an_interrupted_corpus_is_carried_on_to_the_same_files(tmp_path):
    documents = make_documents(13)
    whole = CorpusWriter(tmp_path / "whole", 13, 4)
    fill(whole, documents)
    whole.finalize({})
    parts = CorpusWriter(tmp_path / "parts", 13, 4)
    parts.write_shard(2, documents[8:12])
    with pytest.raises(InputError, match="unfinished"):
        read_corpus(tmp_path / "parts")
    with pytest.raises(InputError, match="lacks 3 of 4 shards"):
        parts.finalize({})
    again = CorpusWriter(tmp_path / "parts", 13, 4)
    assert [index for index, _ in again.missing_shards()] == [0, 1, 3]
    fill(again, documents)
    again.finalize({})
    names = sorted(f.name for f in (tmp_path / "whole").iterdir())
    assert names == sorted(f.name for f in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize("keep", [0, 100, 40_000, -1])
def test_a_shard_cut_short_counts_as_missing(tmp_path, keep):
    documents = [make_document(i, 200) for i in range(40)]
    writer = CorpusWriter(tmp_path, 40, 20)
    fill(writer, documents)
    file = sorted(tmp_path.glob("corpus-*"))[1]
    file.write_bytes(file.read_bytes()[:keep])
    again = CorpusWriter(tmp_path, 40, 20)
    assert [(index, list(ids)) for index, ids in again.missing_shards()] == [(1, list(range(20, 40)))]
    fill(again, documents)
    again.finalize({})
    assert_same(read_corpus(tmp_path), documents)


def test_leftover_temporaries_are_not_shards_and_go_away(tmp_path):
    writer = CorpusWriter(tmp_path, 4, 2)
    leftover = tmp_path / ".corpus-train.array_record-00001-of-00002.123.tmp"
    leftover.write_bytes(b"half a shard")
    assert [index for index, _ in CorpusWriter(tmp_path, 4, 2).missing_shards()] == [0, 1]
    fill(writer, make_documents(4))
    writer.finalize({})
    assert not leftover.exists()
    assert_same(read_corpus(tmp_path), make_documents(4))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_process_killed_between_writing_and_renaming_leaves_the_shard_missing(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from selftrain_jax.data.corpus import CorpusWriter, Document
        one = lambda i: Document(i, np.array([i], np.int32), np.array([-1.0], np.float32), "eos", "x")
        writer = CorpusWriter(sys.argv[1], 4, 2)
        writer.write_shard(0, [one(0), one(1)])
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        writer.write_shard(1, [one(2), one(3)])
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [index for index, _ in CorpusWriter(tmp_path, 4, 2).missing_shards()] == [1]


def test_writing_into_a_finished_corpus_makes_it_unfinished(tmp_path):
    write_corpus(tmp_path, make_documents(4), {}, shard_size=2)
    CorpusWriter(tmp_path, 4, 2).write_shard(1, make_documents(4)[2:])
    with pytest.raises(InputError, match="unfinished"):
        read_corpus(tmp_path)


def test_shards_of_another_layout_or_other_ids_are_not_taken_over(tmp_path):
    write_corpus(tmp_path, make_documents(6), {}, shard_size=2)
    with pytest.raises(InputError, match="another layout"):
        CorpusWriter(tmp_path, 6, 3)
    moved = CorpusWriter(tmp_path, 6, 2, ids=[0, 1, 2, 3, 4, 9])
    assert [index for index, _ in moved.missing_shards()] == [2]


def test_an_exchanged_document_inside_a_shard_is_found(tmp_path):
    documents = make_documents(4)
    CorpusWriter(tmp_path, 4, 4, ids=[0, 2, 1, 3]).write_shard(0, [documents[i] for i in (0, 2, 1, 3)])
    with pytest.raises(InputError, match="found document 2 where 1 belongs"):
        CorpusWriter(tmp_path, 4, 4).finalize({})


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": np.zeros((2, 2), np.int32)},
        {"tokens": np.array([1.5, 2.0, 3.0])},
        {"tokens": np.array([1, -2, 3])},
        {"tokens": np.array([1, 2**31, 3])},
        {"log_probs": np.zeros(2, np.float32)},
        {"log_probs": np.array([-1.0, np.nan, -1.0])},
        {"log_probs": np.array([-1.0, -np.inf, -1.0])},
        {"stop_reason": "killed"},
        {"text": "\ud800"},
    ],
)
def test_malformed_documents_are_refused_before_anything_is_written(tmp_path, change):
    fields = {"id": 0, "tokens": np.arange(3), "log_probs": -np.ones(3), "stop_reason": "eos", "text": "x"}
    writer = CorpusWriter(tmp_path, 1, 1)
    with pytest.raises(InputError, match="document 0"):
        writer.write_shard(0, [Document(**{**fields, **change})])
    assert list(tmp_path.iterdir()) == []
    writer.write_shard(0, [Document(**fields)])
    assert writer.missing_shards() == []


def test_wrong_ids_and_settings_are_refused(tmp_path):
    writer = CorpusWriter(tmp_path / "a", 4, 2)
    documents = make_documents(4)
    for wrong in (documents[2:], documents[:1], documents[1::-1], []):
        with pytest.raises(InputError, match="ids 0 to 1"):
            writer.write_shard(0, wrong)
    for index in (2, -1):
        with pytest.raises(InputError, match="does not exist"):
            writer.write_shard(index, documents[:2])
    for arguments in ({"num_documents": 0}, {"num_documents": 2, "shard_size": 0}):
        with pytest.raises(InputError, match="at least 1"):
            CorpusWriter(tmp_path / "b", **arguments)
    for ids in ([1, 1], [1], [1, 2, 3]):
        with pytest.raises(InputError, match="different"):
            CorpusWriter(tmp_path / "b", 2, ids=ids)
    with pytest.raises(InputError):
        write_corpus(tmp_path / "b", [], {})


def test_damage_is_reported(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_corpus(tmp_path / "nowhere")
    documents = [make_document(i, 500) for i in range(60)]

    def damaged(name):
        path = tmp_path / name
        write_corpus(path, documents, {}, shard_size=30)
        return path, sorted(path.glob("corpus-*"))[1]

    path, shard = damaged("absent")
    shard.unlink()
    with pytest.raises(InputError, match=f"damaged .shard {shard.name}: cut short or missing"):
        read_corpus(path)
    path, shard = damaged("stray")
    shard.with_name(shard.name.replace("of-00002", "of-00004")).write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match="damaged .*of-00004 is of another layout.: remove the folder"):
        read_corpus(path)
    path, _ = damaged("manifest")
    (path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        read_corpus(path)


def test_a_name_may_say_any_number_of_shards(tmp_path, monkeypatch):
    """One file of a stranger's: no list of that length is made, nor is every shard looked for."""
    write_corpus(tmp_path / "c", make_documents(3), {})
    (tmp_path / "c" / "corpus-a-of-50000").touch()
    looked = []
    monkeypatch.setattr(corpus_module, "shard_length", lambda file, *_: looked.append(file) or 0)
    with pytest.raises(InputError, match="shard corpus-train.array_record-00000-of-50000: cut short or missing"):
        read_corpus(tmp_path / "c")
    assert len(looked) == 1
    assert len(corpus_module._shard_files(tmp_path, 10**30, 3)) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_of_a_damaged_shard_only_that_shard_is_written_again(tmp_path, damage):
    documents = [make_document(i, 500) for i in range(90)]
    path = tmp_path / "stage" / "corpus"
    write_corpus(path, documents, {"model": "m"}, shard_size=30)
    (path.parent / "manifest.json").write_text("{}")  # of the stage
    whole = corpus_fingerprint(path)
    shard = sorted(path.glob("corpus-*"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content if damage == "flipped" else content[:-1000])
    with pytest.raises(InputError, match=f"damaged .shard {shard.name}: .*which draws this shard alone") as e:
        list(read_corpus(path))
    for file in str(e.value).split(": remove ")[1].split(" and run")[0].split(", "):
        pathlib.Path(file).unlink()
    assert not (path.parent / "manifest.json").exists()
    writer = CorpusWriter(path, 90, 30)
    assert [index for index, _ in writer.missing_shards()] == [1]
    fill(writer, documents)
    writer.finalize({"model": "m"})
    assert corpus_fingerprint(path) == whole


@pytest.mark.parametrize("change", [{"provenance": None}, {"num_documents": None}, {"schema": 2}, {"nll": None}])
def test_a_manifest_of_another_make_is_refused(tmp_path, change):
    [(name, value)] = change.items()
    manifest = write_corpus(tmp_path, make_documents(4), {})
    del manifest[name]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | ({name: value} if value else {})))
    with pytest.raises(InputError, match="is not of schema 1"):
        read_corpus(tmp_path)


def test_a_damaged_import_is_imported_again(tmp_path):
    write_corpus(tmp_path / "c", make_documents(9), {"kind": "jsonl"}, shard_size=4)
    sorted((tmp_path / "c").glob("corpus-*"))[1].unlink()
    with pytest.raises(InputError, match="remove the folder and write the corpus again"):
        read_corpus(tmp_path / "c")


def test_a_corpus_runs_no_code(tmp_path, monkeypatch):
    """TFDS imports the module of a feature class that features.json names; a corpus is read without it."""
    write_corpus(tmp_path / "c", make_documents(9), {})
    (tmp_path / "stranger_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "c" / "features.json").write_text('{"pythonClassName": "stranger_module.Feature", "text": {}}')
    assert_same(read_corpus(tmp_path / "c"), make_documents(9))
    assert not (tmp_path / "ran").exists()


@hypothesis.given(
    st.lists(st.tuples(st.lists(st.integers(0, 2**31 - 1), max_size=6), st.text()), min_size=1), st.data()
)
def test_any_documents_come_back_as_they_were(drawn, data):
    """Of no token and of one, with an end-of-text token within, with and without log-probabilities, in any shards."""
    measured, size = data.draw(st.booleans()), data.draw(st.integers(1, len(drawn)))
    documents = [
        Document(i, np.array(ids, np.int32), np.full(len(ids), -i / 3, np.float32) if measured else None, "eos", text)
        for i, (ids, text) in enumerate(drawn)
    ]
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_corpus(folder, documents, {}, shard_size=size)
        found = read_corpus(folder)
        assert (manifest["num_documents"], manifest["num_tokens"]) == (len(drawn), sum(len(ids) for ids, _ in drawn))
        for a, b in zip(found, documents, strict=True):
            assert (a.id, a.stop_reason, a.text, a.tokens.tolist()) == (b.id, "eos", b.text, b.tokens.tolist())
            assert (a.log_probs is None) == (not measured and len(b.tokens) > 0)
            if a.log_probs is not None and measured:
                np.testing.assert_array_equal(a.log_probs, b.log_probs)


def test_statistics_are_those_of_the_documents():
    def document(i, log_probs, stop_reason):
        log_probs = np.array(log_probs, np.float32)
        return Document(i, np.zeros(len(log_probs), np.int32), log_probs, stop_reason, "")

    summary = summarize(
        iter(
            [
                document(0, [-1.0, -2.0], "eos"),
                document(1, [-6.0] * 4, "length"),
                document(2, [], "eos"),
                document(3, [-100.0], "eos"),
            ]
        )
    )
    assert (summary["num_documents"], summary["num_tokens"]) == (4, 7)
    assert summary["stop_reasons"] == {"eos": 3, "length": 1}
    length = summary["length"]
    assert (length["mean"], length["min"], length["max"], length["quantiles"]["0.5"]) == (1.75, 0, 4, 1.5)
    assert summary["nll"]["mean"] == pytest.approx(127 / 7)
    assert summary["nll"]["per_document_mean"] == pytest.approx((1.5 + 6 + 100) / 3)
    edges, counts = (np.array(summary["nll"]["histogram"][k]) for k in ("edges", "counts"))
    assert len(edges) == len(counts) + 1
    assert counts.sum() == 3
    assert counts[np.searchsorted(edges, 1.5, "right") - 1] == 1
    assert counts[-1] == 1
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_without_tokens_or_documents():
    assert summarize([make_document(0, 0)])["nll"]["mean"] is None
    with pytest.raises(InputError, match="no documents"):
        summarize([])


def test_a_corpus_that_is_replaced_while_it_is_read_is_no_mixture(tmp_path):
    count = 3 * 1024
    for name in ("corpus", "other"):
        write_corpus(tmp_path / name, [make_document(i, 3) for i in range(count)], {}, shard_size=1024)
    documents = iter(read_corpus(tmp_path / "corpus"))
    next(documents)
    (tmp_path / "corpus").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "corpus")
    with pytest.raises(InputError, match="corpus .* was written anew while it was read: start the command again"):
        list(documents)
