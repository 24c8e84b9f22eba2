"""Text from elsewhere becomes a corpus that says what the text says, or one line says why not and nothing is
written.
"""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import file_fingerprint, write_jsonl
from selftrain_jax.data import clean, external
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.external import import_corpus
from selftrain_jax.data.settings import AuditConfig, SubsetConfig
from selftrain_jax.data.training_set import read_documents, write_subset
from selftrain_jax.models.files.tokenizer import load_tokenizer, tokenizer_fingerprint

TEXTS = [
    "plain words",
    "naïve “quotes” 🎉\nनमस्ते",
    "",
    "\u200b\ufeff \n\t",
    "nul \0 byte\n",
    "<|endoftext|> first, </s> last<|pad|>",
]
KEPT = [0, 1, 4, 5]
EOS = 256


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    """One token per byte, so that tokens and text say the same; EOS and padding are tokens of their own."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    directory = tmp_path_factory.mktemp("bytes")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return directory


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="needs the extra `datasets`")


def rows(texts=TEXTS):
    return [{"id": i, "text": text} for i, text in enumerate(texts)]


def jsonl(path):
    write_jsonl(path / "a.jsonl", rows())
    return path / "a.jsonl"


def jsonl_gz(path):
    (path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(path).read_bytes()))
    return path / "a.jsonl.gz"


def as_json(value):
    def write(path):
        (path / "texts.json").write_text(json.dumps(value))
        return path / "texts.json"

    return write


def folder_of_jsonl(path):
    (path / "folder" / "data").mkdir(parents=True)
    write_jsonl(path / "folder" / "data" / "train-00000-of-00002.jsonl", rows()[:2])
    write_jsonl(path / "folder" / "data" / "train-00001-of-00002.jsonl", rows()[2:])
    write_jsonl(path / "folder" / "data" / "test-00000-of-00001.jsonl", rows(["never"]))
    return path / "folder"


def saved(path):
    import datasets

    datasets.Dataset.from_list(rows()).save_to_disk(path / "saved")
    return path / "saved"


def saved_splits(path):
    import datasets

    train, test = datasets.Dataset.from_list(rows()), datasets.Dataset.from_list(rows(["never"]))
    datasets.DatasetDict({"test": test, "train": train}).save_to_disk(path / "saved")
    return path / "saved"


def parquet(path):
    import datasets

    (path / "folder").mkdir()
    datasets.Dataset.from_list(rows()[:4]).to_parquet(path / "folder" / "0.parquet")
    datasets.Dataset.from_list(rows()[4:]).to_parquet(path / "folder" / "1.parquet")
    return path / "folder"


FILES = {
    "jsonl": jsonl,
    "jsonl.gz": jsonl_gz,
    "list of strings": as_json(TEXTS),
    "list of objects": as_json(rows()),
    "columns": as_json({"id": list(range(6)), "text": TEXTS}),
    "folder of jsonl": folder_of_jsonl,
}
HUGGING_FACE = {"saved": saved, "saved with splits": saved_splits, "folder of parquet": parquet}


def check(directory, tokenizer_directory):
    corpus = read_corpus(directory)
    assert [(d.id, d.text) for d in corpus] == [(i, TEXTS[i]) for i in KEPT]
    tokenizer = load_tokenizer(tokenizer_directory)
    for d in corpus:
        # One token per byte: the tokens are the whole text and nothing else, closed by EOS.
        assert len(d.tokens) == len(d.text.encode()) + 1
        assert tokenizer.decode(d.tokens[:-1]) == d.text
        assert d.tokens[-1] == EOS and (d.tokens[:-1] < EOS).all()
        assert (d.log_probs, d.stop_reason) == (None, "eos")
    counts = corpus.manifest["provenance"]
    assert (counts["num_read"], counts["num_empty"], counts["num_with_special_tokens"]) == (6, 2, 1)
    assert counts["num_repeated"] == 0
    assert corpus.manifest["nll"] is None
    return corpus


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_every_kind_of_file_gives_the_same_documents(write, byte_tokenizer, tmp_path):
    source = write(tmp_path)
    manifest = import_corpus(source, tmp_path / "out" / "corpus", byte_tokenizer)
    assert check(tmp_path / "out" / "corpus", byte_tokenizer).manifest == manifest
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["corpus"]


@pytest.mark.parametrize("write", HUGGING_FACE.values(), ids=HUGGING_FACE)
def test_every_kind_of_hugging_face_folder_gives_the_same_documents(datasets, write, byte_tokenizer, tmp_path):
    source = write(tmp_path)
    import_corpus(source, tmp_path / "corpus", byte_tokenizer)
    data = [f for f in sorted(source.rglob("*")) if f.suffix in (".arrow", ".parquet") and "test" not in f.parts]
    assert check(tmp_path / "corpus", byte_tokenizer).manifest["provenance"]["fingerprint"] == file_fingerprint(*data)


def test_a_script_beside_the_data_does_not_run(datasets, byte_tokenizer, tmp_path):
    folder = parquet(tmp_path)
    (folder / "folder.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    import_corpus(folder, tmp_path / "corpus", byte_tokenizer)
    check(tmp_path / "corpus", byte_tokenizer)
    assert not (tmp_path / "ran").exists()


def test_a_tfds_folder_gives_the_same_documents(byte_tokenizer, tmp_path):
    """A finished corpus is one; its imported twin holds the same documents under new ids."""
    import_corpus(jsonl(tmp_path), tmp_path / "first", byte_tokenizer)
    import_corpus(f"tfds:{tmp_path / 'first'}", tmp_path / "second", byte_tokenizer)
    first, second = read_corpus(tmp_path / "first"), read_corpus(tmp_path / "second")
    assert [d.id for d in second] == [0, 1, 2, 3]
    for a, b in zip(first, second, strict=True):
        assert a.text == b.text
        np.testing.assert_array_equal(a.tokens, b.tokens)
    provenance = second.manifest["provenance"]
    assert provenance["dataset"] == {"name": "corpus/1.0.0", "version": "1.0.0"}
    assert provenance["fingerprint"] == file_fingerprint(*sorted((tmp_path / "first").glob("corpus-*")))
    assert "tensorflow" not in sys.modules


class SelftrainThings(tfds.core.GeneratorBasedBuilder):
    """A named TFDS data set, prepared when first asked for."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None  # where TFDS would look for the description of an installed data set

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples(), "test": self._generate_examples(1)}

    def _generate_examples(self, count=5):
        for i in range(count):
            yield i, {"text": f"thing {i}", "n": i}


class SelftrainAway(SelftrainThings):
    """One whose files can no longer be had."""

    def _split_generators(self, _):
        raise ConnectionError("no route\nto host")


@pytest.fixture
def tfds_home(monkeypatch, tmp_path):
    for builder in (SelftrainThings, SelftrainAway):
        monkeypatch.setattr(builder, "pkg_dir_path", tmp_path)
    original = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: original(name, data_dir=tmp_path / "tfds"))


def test_a_named_tfds_data_set_is_prepared_and_read(tfds_home, byte_tokenizer, tmp_path):
    for i, name in enumerate(("selftrain_things", "selftrain_things:1.2.0")):
        manifest = import_corpus(f"tfds:{name}", tmp_path / f"c{i}", byte_tokenizer)
        assert sorted(d.text for d in read_corpus(tmp_path / f"c{i}")) == [f"thing {i}" for i in range(5)]
        assert manifest["provenance"]["dataset"]["version"] == "1.2.0"
    assert import_corpus("tfds:selftrain_things", tmp_path / "t", byte_tokenizer, split="test")["num_documents"] == 1


def test_a_limit_counts_the_documents_taken(byte_tokenizer, tmp_path):
    manifest = import_corpus(jsonl(tmp_path), tmp_path / "c", byte_tokenizer, limit=3)
    assert [d.id for d in read_corpus(tmp_path / "c")] == KEPT[:3]
    assert (manifest["provenance"]["num_read"], manifest["provenance"]["num_empty"]) == (5, 2)


def test_another_field_and_another_split(byte_tokenizer, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "prompt", "output": "answer"}]))
    import_corpus(tmp_path / "a.json", tmp_path / "c", byte_tokenizer, field="output")
    assert [d.text for d in read_corpus(tmp_path / "c")] == ["answer"]
    import_corpus(folder_of_jsonl(tmp_path), tmp_path / "d", byte_tokenizer, split="test")
    assert [d.text for d in read_corpus(tmp_path / "d")] == ["never"]


def test_more_texts_than_a_shard_holds_stay_in_order(byte_tokenizer, tmp_path):
    texts = [f"text {i}" if i % 5 else "" for i in range(2_600)]
    write_jsonl(tmp_path / "a.jsonl", rows(texts))
    import_corpus(tmp_path / "a.jsonl", tmp_path / "c", byte_tokenizer)
    assert len(list((tmp_path / "c").glob("corpus-*"))) == 3
    assert [(d.id, d.text) for d in read_corpus(tmp_path / "c")] == [(i, t) for i, t in enumerate(texts) if t]


def test_where_the_texts_come_from_is_on_record(byte_tokenizer, tmp_path):
    source = jsonl(tmp_path)
    found = import_corpus(source, tmp_path / "c", byte_tokenizer)["provenance"]
    assert found["fingerprint"] == file_fingerprint(source)
    assert found["tokenizer_fingerprint"] == tokenizer_fingerprint(byte_tokenizer)
    assert (found["source"], found["kind"], found["field"], found["split"]) == (str(source), "jsonl", "text", "train")
    assert found["vocab_size"] == 258 and found["document_end_id"] == EOS
    assert read_corpus(tmp_path / "c").manifest["provenance"] == found


def test_the_student_trains_on_the_imported_ids(world, model_directory, tmp_path):
    """EOS is that of the model's config.json, and the tokenizer rule takes the corpus for the student's."""
    texts = [" ".join(world.words[i : i + 6]) for i in range(10, 40)]
    write_jsonl(tmp_path / "a.jsonl", rows(texts))
    import_corpus(tmp_path / "a.jsonl", tmp_path / "c", model_directory)
    (tmp_path / "audit").mkdir()
    (tmp_path / "subset").mkdir()
    text = clean.TrainingText(corpus=tmp_path / "c")
    clean.audit_text(text, {}, AuditConfig(), tmp_path / "audit")
    settings = SubsetConfig(num_tokens=16 * 8 + 1, num_subsets=1)
    write_subset(tmp_path / "audit", text, model_directory, settings, 0, 16, tmp_path / "subset")
    stream = np.concatenate([*read_documents(tmp_path / "subset")])
    known = {tuple(d.tokens) for d in read_corpus(tmp_path / "c")}
    whole = stream[: len(stream) // 7 * 7].reshape(-1, 7)
    assert len(whole) > 10 and (whole[:, -1] == 0).all() and {tuple(row) for row in whole} <= known


def test_the_name_of_a_special_token_in_a_text_ends_nothing(world, model_directory, tmp_path):
    """To a word-level tokenizer "<|endoftext|>" between two spaces is a word, and that word is EOS."""
    words = f"{world.words[9]} <|endoftext|> {world.words[8]}"
    write_jsonl(tmp_path / "a.jsonl", rows([words]))
    import_corpus(tmp_path / "a.jsonl", tmp_path / "c", model_directory)
    [document] = read_corpus(tmp_path / "c")
    tokenizer = load_tokenizer(model_directory)
    assert document.tokens.tolist() == [9, tokenizer.unk_token_id, 8, 0] and document.text == words


def test_a_tokenizer_that_must_end_a_text_in_its_middle_is_refused(world, model_directory, tmp_path):
    """One whose token of unknown text is EOS."""
    model = shutil.copytree(model_directory, tmp_path / "model")
    named = json.loads((model / "tokenizer.json").read_text())
    named["model"]["unk_token"] = "<|endoftext|>"
    (model / "tokenizer.json").write_text(json.dumps(named))
    write_jsonl(tmp_path / "a.jsonl", rows([world.words[9], f"{world.words[9]} Unheard {world.words[8]}"]))
    with pytest.raises(InputError, match="item 2: the tokenizer makes an end-of-text token"):
        import_corpus(tmp_path / "a.jsonl", tmp_path / "c", model)
    assert not (tmp_path / "c").exists()


def content(name, text):
    return lambda path: (path / name).write_text(text) and path / name


BAD = {
    "missing file": (lambda path: path / "gone.jsonl", {}, "import source not found: .*gone.jsonl"),
    "unknown kind": (content("a.txt", "x"), {}, "a.txt is of no known kind"),
    "broken JSON": (content("a.json", '["x", '), {}, "a.json is not valid JSON"),
    "broken line": (content("a.jsonl", '{"text": "x"}\n{"te'), {}, "line 2: not valid JSON"),
    "cut gzip": (
        lambda path: jsonl_gz(path).write_bytes(jsonl_gz(path).read_bytes()[:40]) and path / "a.jsonl.gz",
        {},
        "not a whole gzip file",
    ),
    "number": (content("a.json", "5"), {}, "must hold a list of texts"),
    "object": (content("a.json", '{"text": "x"}'), {}, "must hold a list of texts"),
    "ragged columns": (content("a.json", '{"text": ["x"], "n": [1, 2]}'), {}, r"different lengths \(text 1, n 2\)"),
    "wrong field": (jsonl, {"field": "body"}, "item 1: no field='body'; the fields are id, text"),
    "field missing later": (as_json([{"text": "x"}, {"txt": "y"}]), {}, "item 2: no field='text'; the fields are txt"),
    "not a text": (as_json([{"text": "x"}, {"text": 5}]), {}, "item 2, field text: must be a text, not int"),
    "nothing": (as_json([{"text": None}]), {}, "item 1, field text: must be a text, not NoneType"),
    "lone surrogate": (content("a.json", '["x", "\\ud800"]'), {}, "item 2: not valid Unicode"),
    "no items": (as_json([]), {}, "holds no text"),
    "only empty": (as_json(["", " "]), {}, r"holds no text \(2 empty ones\)"),
    "split of a file": (jsonl, {"split": "test"}, "split='test': .* single file"),
    "split of a folder": (folder_of_jsonl, {"split": "validation"}, "split='validation'.* of the splits test, train"),
    "empty folder": (lambda path: path, {}, "holds no .parquet or .jsonl file"),
    "limit": (jsonl, {"limit": 0}, "limit=0 must be at least 1"),
    "tfds typo": (lambda _: "tfds:mnits", {}, "no data set 'mnits'; did you mean 'mnist'"),
    "tfds unknown": (lambda _: "tfds:xyzzy_plugh", {}, "no data set 'xyzzy_plugh'"),
    "tfds with code": (lambda _: "tfds:huggingface:some/thing", {}, "must be tfds:NAME"),
    "tfds of a hub": (lambda _: "tfds:huggingface:squad", {}, "must be tfds:NAME"),
    "tfds of Kaggle": (lambda _: "tfds:kaggle:x", {}, "must be tfds:NAME"),
    "nobody's home": (lambda _: "~nobody-of-that-name/a.json", {}, "no such user's home"),
    "nobody's tfds": (lambda _: "tfds:~nobody-of-that-name/a", {}, "no such user's home"),
    "long name": (lambda path: path / ("a" * 300), {}, "import source not found"),
    "tfds unprepared": (lambda _: "tfds:selftrain_away", {}, "neither read nor prepared .*no route to host"),
    "tfds folder": (lambda path: f"tfds:{path}", {}, "no dataset_info.json"),
    "tfds split": (lambda _: "tfds:selftrain_things", {"split": "dev"}, "split='dev'.*has the splits t"),
    "tfds field": (lambda _: "tfds:selftrain_things", {"field": "x"}, "no field='x'; the fields are "),
    "tfds number": (lambda _: "tfds:selftrain_things", {"field": "n"}, "field n: must be a text, not int"),
}


@pytest.mark.parametrize("write, arguments, message", BAD.values(), ids=BAD)
def test_what_cannot_be_imported_is_refused_in_one_line(tfds_home, byte_tokenizer, tmp_path, write, arguments, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=message) as e:
        import_corpus(write(tmp_path / "in"), tmp_path / "out" / "corpus", byte_tokenizer, **arguments)
    assert "\n" not in str(e.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_finished_corpus_is_sent_where_it_belongs(byte_tokenizer, tmp_path):
    import_corpus(jsonl(tmp_path), tmp_path / "c", byte_tokenizer)
    with pytest.raises(InputError, match="needs no import: set controls.NAME.corpus"):
        import_corpus(tmp_path / "c", tmp_path / "d", byte_tokenizer)


def test_splits_and_damage_of_hugging_face_folders(datasets, byte_tokenizer, tmp_path):
    folder = saved_splits(tmp_path)
    with pytest.raises(InputError, match="split='dev'.*has the splits test, train"):
        import_corpus(folder, tmp_path / "c", byte_tokenizer, split="dev")
    import_corpus(folder, tmp_path / "test", byte_tokenizer, split="test")
    assert [d.text for d in read_corpus(tmp_path / "test")] == ["never"]
    (folder / "train" / "state.json").write_text("{")
    with pytest.raises(InputError, match="not a readable saved data set"):
        import_corpus(folder, tmp_path / "c", byte_tokenizer)
    file = parquet(tmp_path) / "1.parquet"
    whole = (file.parent / "0.parquet").read_bytes()
    (file.parent / "0.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not readable parquet|damaged") as e:
        import_corpus(file.parent, tmp_path / "c", byte_tokenizer)
    assert "\n" not in str(e.value)
    (file.parent / "0.parquet").write_bytes(whole)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged") as e:
        import_corpus(file.parent, tmp_path / "c", byte_tokenizer)
    assert "\n" not in str(e.value) and not (tmp_path / "c").exists()


def test_without_the_library_the_extra_is_named(monkeypatch, byte_tokenizer, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "state.json").write_text("{}")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "a.parquet").write_text("")
    for name in "xy":
        with pytest.raises(InputError, match=r"pip install 'selftrain_jax\[datasets\]'"):
            import_corpus(tmp_path / name, tmp_path / "c", byte_tokenizer)


def test_a_destination_in_use_stays_as_it_is(byte_tokenizer, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("folder", "file"):
        with pytest.raises(InputError, match=f"destination .*{name} exists"):
            import_corpus(jsonl(tmp_path), tmp_path / name, byte_tokenizer)
    with pytest.raises(InputError, match="cannot be written"):
        import_corpus(jsonl(tmp_path), tmp_path / "file" / "below", byte_tokenizer)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "a file"
    (tmp_path / "empty").mkdir()
    import_corpus(jsonl(tmp_path), tmp_path / "empty", byte_tokenizer)
    check(tmp_path / "empty", byte_tokenizer)


@pytest.mark.parametrize("then", [[f"other {i}" for i in range(1_500)], ["cut"] * 1_100, ["", *(["more"] * 3_000)]])
def test_a_source_that_changes_while_it_is_read_is_refused(monkeypatch, byte_tokenizer, tmp_path, then):
    """It is read twice: the texts of the second time would pass for those of the first."""
    write_jsonl(tmp_path / "a.jsonl", rows([f"text {i}" for i in range(1_500)]))
    scan = external._scan

    def changed_then(*arguments):
        found = scan(*arguments)
        write_jsonl(tmp_path / "a.jsonl", rows(then))
        return found

    monkeypatch.setattr(external, "_scan", changed_then)
    with pytest.raises(InputError, match="a.jsonl changed while it was read"):
        import_corpus(tmp_path / "a.jsonl", tmp_path / "c", byte_tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_interrupted_import_leaves_nothing(monkeypatch, byte_tokenizer, tmp_path):
    from selftrain_jax.data.corpus import CorpusWriter

    write_jsonl(tmp_path / "a.jsonl", rows([f"text {i}" for i in range(1_500)]))
    write_shard = CorpusWriter.write_shard

    def interrupted(self, index, documents):
        write_shard(self, index, documents)
        if index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(CorpusWriter, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_corpus(tmp_path / "a.jsonl", tmp_path / "c", byte_tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_versions_are_no_namespaces():
    from selftrain_jax.data.sources import _TFDS_NAME

    for name in ("mnist", "mnist:3.0.1", "mnist:3.*.*", "mnist:*", "wiki40b/en:1.3.0", "c4/en"):
        assert _TFDS_NAME.fullmatch(name), name


def test_a_disk_that_fills_up_is_one_line(byte_tokenizer, tmp_path):
    """A limit on the size of files stands in for the disk."""
    write_jsonl(tmp_path / "a.jsonl", rows(["some text " * 20] * 2_000))
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from selftrain_jax.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    arguments = ["import", tmp_path / "a.jsonl", tmp_path / "out", f"--tokenizer={byte_tokenizer}"]
    code = "import sys; sys.path.insert(0, sys.argv[1]);" + code
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, root, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"selftrain: error: import destination {tmp_path / 'out'} cannot be written (")
    assert "File too large" in last and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_tokenizer_without_eos_is_refused(byte_tokenizer, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer.json").write_bytes((byte_tokenizer / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="no EOS token and has no config.json"):
        import_corpus(jsonl(tmp_path), tmp_path / "c", tmp_path / "t")


def test_documents_that_are_there_twice_are_counted_and_told(byte_tokenizer, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ("a b", "c", "a b", "", "a b")])
    with pytest.warns(InputWarning, match="a.jsonl: 2 of 4 documents equal an earlier one, and are kept"):
        manifest = import_corpus(str(tmp_path / "a.jsonl"), tmp_path / "out", byte_tokenizer)
    assert (manifest["num_documents"], manifest["provenance"]["num_repeated"]) == (4, 2)
