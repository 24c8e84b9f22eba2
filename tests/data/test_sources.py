"""What of a stranger's folder is read: its visible files of one split, and of these the texts alone; nothing is run."""

import contextlib
import errno
import gzip
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.corpus import Document, write_corpus
from selftrain_jax.data.sources import open_source
from selftrain_jax.evaluation.probes import dataset_probes

HIDDEN = (".ipynb_checkpoints/a", ".git/a", "__MACOSX/._a", "._a", ".a", "_spark_metadata/a", "sub/.cache/deep/a")


def texts(source, split="train", field="text"):
    return list(open_source(source, split).texts(field))


def write_file(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `datasets`")
        import pyarrow

        parquet.write_table(pyarrow.table({"n": [1] * len(content), "text": content}), path)
    else:
        write_jsonl(path, [{"text": text} for text in content])


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".NDJSON", ".jsonl.gz"])
def test_hidden_files_and_folders_are_no_data(tmp_path, ending):
    content = gzip.compress(b'{"text": "a"}') if ending.endswith(".gz") else ["a"]
    write_file(tmp_path / f"a{ending}", content)
    write_file(tmp_path / "sub" / f"b{ending}", content)
    for name in HIDDEN:
        write_file(tmp_path / f"{name}{ending}", b"\x00\x05\x16\x07 no data at all")
    assert texts(tmp_path) == ["a", "a"]


def test_hidden_files_beside_a_saved_data_set_are_no_data(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "saved")
    before = open_source(tmp_path / "saved").fingerprint
    write_file(tmp_path / "saved" / "._data-00000-of-00001.arrow", b"no data")
    assert texts(tmp_path / "saved") == ["a"] and open_source(tmp_path / "saved").fingerprint == before


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("training", "testing"),
        ("train1", "test1"),
        ("Train", "Test"),
        ("TRAIN_a", "x-Eval"),
        ("data/train", "data/evaluation"),
        ("train/a", "test/a"),
        ("Training/test_a", "eval-2/train_a"),  # a folder's name counts more than a file's
        ("my train/a", "my test/a"),
        ("data/train-00000-of-00001", "data/test-00000-of-00001-0a1b"),
    ],
)
def test_splits_are_those_of_the_datasets_library_in_any_case(tmp_path, train, test, ending):
    write_file(tmp_path / f"{train}{ending}", ["train"])
    write_file(tmp_path / f"{test}{ending}", ["test"])
    assert texts(tmp_path) == ["train"]
    assert texts(tmp_path, "test") == texts(tmp_path, "eval") == ["test"]
    with pytest.raises(InputError, match="split='dev'.* of the splits test, train;"):
        texts(tmp_path, "dev")


WORDS = st.sampled_from(
    "train training test testing eval evaluation dev val valid validation x data latest train1 my-train foo.dev.bar "
    "testing_2 data/train-00000-of-00001 data/test-00000-of-00001 data/foo-00000-of-00001".split()
)


@hypothesis.given(st.sets(st.lists(WORDS, min_size=1, max_size=2).map("/".join), min_size=1, max_size=4))
def test_any_folder_is_split_as_the_datasets_library_does(names):
    """What that library reads into two splits is refused."""
    data_files = pytest.importorskip("datasets.data_files", reason="needs the extra `datasets`")

    def matching(pattern, folder):
        with contextlib.suppress(FileNotFoundError):
            return {os.path.relpath(path, folder) for path in data_files.resolve_pattern(pattern, folder)}
        return set()

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            write_file(pathlib.Path(folder) / f"{name}.jsonl", [f"{name}.jsonl"])
        patterns = data_files.get_data_patterns(folder)
        splits = {str(name): set().union(*(matching(p, folder) for p in found)) for name, found in patterns.items()}
        for split in ("train", "validation", "test"):
            if any(a & b for a, b in itertools.combinations(splits.values(), 2)):
                refusal = "names the splits"
            elif splits.get(split):
                assert set(texts(folder, split)) == splits[split]
                continue
            else:
                refusal = f"split='{split}': the files of"
            with pytest.raises(InputError, match=refusal):
                texts(folder, split)


CARD = "---\nconfigs:\n{}\n---\n# Data\n"


def test_configurations_that_a_card_tells_apart_are_not_read_as_one(tmp_path):
    """As of wikitext, where the one holds the other; the `datasets` library asks which."""
    for name in ("small", "large"):
        write_file(tmp_path / name / "train-00000-of-00001.jsonl", [name])
    assert texts(tmp_path) == ["large", "small"]
    told = "\n".join(
        f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}/*" for n in ("small", "large")
    )
    (tmp_path / "README.md").write_text(CARD.format(told))
    with pytest.raises(InputError, match="tells the configurations small, large apart"):
        texts(tmp_path)
    assert texts(tmp_path / "small") == ["small"]


@pytest.mark.parametrize(
    "path, right", [("data/a.jsonl", False), ('["data/a.jsonl", "data/b*"]', True), ('"**"', True)]
)
def test_the_files_that_a_card_gives_a_split_are_those_that_are_read(tmp_path, path, right):
    for name in "ab":
        write_file(tmp_path / "data" / f"{name}.jsonl", [name])
    told = f"- config_name: default\n  data_files:\n  - split: train\n    path: {path}"
    (tmp_path / "README.md").write_text(CARD.format(told))
    if right:
        assert texts(tmp_path) == ["a", "b"]
    else:
        with pytest.raises(InputError, match=r"not those that README.md gives it \(data/b.jsonl\)"):
            texts(tmp_path)


def test_a_part_of_a_word_is_no_split(tmp_path):
    for name in ("latest", "trainer", "devils", "retest"):
        write_file(tmp_path / f"{name}.jsonl", [name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(tmp_path) == ["devils", "latest", "retest", "trainer"]


@pytest.mark.parametrize(
    "left",
    ["extra.jsonl", "data/more.jsonl", "test-set.jsonl", "train/a.csv", "train/b.json", "train/b.jsonl.zst", "b.tmp"],
)
def test_what_is_of_no_split_is_left_out_by_name(tmp_path, left):
    folder = "data/train-00000-of-00001" if left.startswith("data") else "train/a"
    write_file(tmp_path / f"{folder}.jsonl", ["train"])
    write_file(tmp_path / left, ["left"])
    with pytest.warns(InputWarning, match=f"not read, since of no split or another kind: {left}$"):
        assert texts(tmp_path) == ["train"]


def test_a_column_twice_is_refused(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table([["x"], ["y"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet: it has field='text' twice"):
        texts(tmp_path)


def test_a_table_whose_checksums_do_not_hold_is_refused(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path, plain = tmp_path / "a.parquet", {"compression": "none", "use_dictionary": False, "write_statistics": False}
    parquet.write_table(pyarrow.table({"text": ["it rains"]}), path, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"rains", b"raids"))
    with pytest.raises(InputError, match="item 1: damaged .*checksum"):
        texts(tmp_path)


def test_a_file_of_two_splits_is_refused(tmp_path):
    write_file(tmp_path / "train_test.jsonl", ["a"])
    with pytest.raises(InputError, match="train_test.jsonl names the splits test, train; rename it"):
        texts(tmp_path)


def test_splits_of_other_names_are_never_mixed(tmp_path):
    for name in ("deduped", "duped"):
        write_file(tmp_path / "data" / f"{name}.70m-00000-of-00001.jsonl", [name])
    assert texts(tmp_path, "deduped.70m") == ["deduped"]
    with pytest.raises(InputError, match="of the splits deduped.70m, duped.70m"):
        texts(tmp_path)


@pytest.fixture
def data_with_images(tmp_path):
    """Writes rows whose column "image" names an address, at which nobody answers: decoding it fails."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")

    def write(columns, saved=True):
        stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        length = len(next(iter(columns.values())))
        columns = columns | {"image": [{"bytes": None, "path": "http://127.0.0.1:1/x.png"}] * length}
        plain = datasets.Dataset.from_dict(columns)
        features = datasets.Features(plain.features | {"image": stored})
        path = tmp_path / "data"
        if saved:
            datasets.Dataset.from_dict(columns, features).save_to_disk(path)
            info = json.loads((path / "dataset_info.json").read_text())
            info["features"]["image"] = {"_type": "Image"}
            (path / "dataset_info.json").write_text(json.dumps(info))
        else:
            path.mkdir()
            table = datasets.Dataset.from_dict(
                columns, datasets.Features(features | {"image": datasets.Image()})
            ).data.table
            pytest.importorskip("pyarrow.parquet").write_table(table, path / "a.parquet")
        return path

    return write


@pytest.mark.parametrize("saved", [False, True], ids=["parquet", "saved"])
def test_only_the_wanted_column_is_read_and_nothing_is_fetched(data_with_images, saved):
    path = data_with_images({"text": ["a", "b"]}, saved)
    assert texts(path) == ["a", "b"]
    with pytest.raises(InputError, match="item 1, field image: must be a text, not dict"):
        texts(path, field="image")
    with pytest.raises(InputError, match="no field='body'; the fields are text, image"):
        texts(path, field="body")


def test_probes_of_a_saved_data_set_fetch_nothing(data_with_images, tmp_path):
    path = data_with_images({"index": [7], "tokens": [[1, 2, 3]]})
    dataset_probes(path, "train", tmp_path / "p.jsonl", prefix_length=2, suffix_length=1)
    assert json.loads((tmp_path / "p.jsonl").read_text()) == {"prefix": [1, 2], "suffix": [3], "offset": 0, "index": 7}


@pytest.mark.parametrize("file, key", [("dataset_dict.json", "splits"), ("train/state.json", "_data_files")])
def test_a_saved_data_set_names_no_file_outside_of_its_folder(tmp_path, file, key):
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "private")
    names = ["train", "../private"] if key == "splits" else [{"filename": "../../private/data-00000-of-00001.arrow"}]
    path = tmp_path / "data" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: names}))
    with pytest.raises(InputError, match="names '.*private.*', which may lie outside"):
        texts(tmp_path / "data")


def test_a_tfds_folder_names_no_file_outside_of_it(tmp_path):
    for name in ("private", "data"):
        write_corpus(tmp_path / name, [Document(0, np.zeros(1, np.int32), None, "eos", "a")], {})
    path = tmp_path / "data" / "dataset_info.json"
    split = {"filepathTemplate": "../private/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"splits": [info["splits"][0] | split]}))
    with pytest.raises(InputError, match="names '../private/corpus-train.*', which may lie outside"):
        texts(f"tfds:{tmp_path / 'data'}")


@pytest.mark.parametrize("split", ["train[5:4]", "train[:3]+train[5:4]", "train[3:3]", "train[75%:25%]", "train[:0]"])
def test_an_empty_slice_of_a_tfds_data_set_is_none_without_an_end(tmp_path, split):
    write_corpus(tmp_path, [Document(i, np.zeros(1, np.int32), None, "eos", f"text {i}") for i in range(9)], {})
    assert texts(f"tfds:{tmp_path}", split="train[5:7]+train[:1]") == ["text 5", "text 6", "text 0"]
    with pytest.raises(InputError, match="the slice of train from . to . is empty; .* has 9 items there"):
        texts(f"tfds:{tmp_path}", split=split)


STRANGER = "stranger_module.Feature"
FEATURES = {
    "class": {"pythonClassName": STRANGER, "text": {}},
    "old": {"type": STRANGER, "content": {}},
    "inner": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"text": {"python_class_name": STRANGER, "text": {}}}},
    },
    "hidden": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"text": {"type": STRANGER, "content": {}}})},
    },
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_a_tfds_folder_runs_no_code(tmp_path, monkeypatch, features):
    (tmp_path / "stranger_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data").mkdir()
    info = {"name": "x", "version": "1.0.0", "fileFormat": "array_record", "splits": [{"name": "train"}]}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "data" / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match="needs code that is not TFDS's own, for stranger_module.Feature"):
        texts(f"tfds:{tmp_path / 'data'}")
    assert not (tmp_path / "ran").exists()


def test_a_prepared_tfds_data_set_found_by_name_runs_no_code(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    (tmp_path / "stranger_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "tfds" / "strange" / "1.0.0"
    folder.mkdir(parents=True)
    info = {"name": "strange", "version": "1.0.0", "fileFormat": "array_record", "splits": [{"name": "train"}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(FEATURES["class"]))
    original = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: original(name, data_dir=tmp_path / "tfds"))
    with pytest.raises(InputError, match="needs code that is not TFDS's own"):
        texts("tfds:strange")
    assert not (tmp_path / "ran").exists()


def test_a_file_beside_its_archive_is_refused_and_a_copy_warned_of(tmp_path):
    for name in ("train.jsonl", "train (1).jsonl"):
        write_file(tmp_path / name, ["a"])
    with pytest.warns(
        InputWarning, match=r"train.jsonl holds the same as train \(1\).jsonl, and its texts count again"
    ):
        texts(tmp_path)
    (tmp_path / "train (1).jsonl").unlink()
    write_file(tmp_path / "train.jsonl.gz", gzip.compress(b'{"text": "a"}'))
    with pytest.raises(InputError, match="train.jsonl and train.jsonl.gz seem to be one file twice"):
        texts(tmp_path)


@pytest.mark.parametrize("target", ["../elsewhere", "../nowhere"])
def test_a_link_that_would_not_be_read_is_refused(tmp_path, target):
    write_file(tmp_path / "data" / "a.jsonl", ["a"])
    write_file(tmp_path / "elsewhere" / "b.jsonl", ["b"])
    (tmp_path / "data" / "more").symlink_to(target)
    with pytest.raises(InputError, match=f"more is a link to {target}, no file"):
        texts(tmp_path / "data")


@pytest.mark.parametrize("forbids", ["to list", "to enter"])
def test_a_folder_below_that_may_not_be_read_does_not_pass_for_an_empty_one(tmp_path, monkeypatch, forbids):
    shut = tmp_path / "more"
    shut.mkdir()
    for folder in (tmp_path, shut):
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
    with monkeypatch.context() as patched:  # whoever runs the tests may be allowed everything
        if forbids == "to list":

            def refuse(path, real=os.scandir):
                if os.fspath(path) == os.fspath(shut):
                    raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
                return real(path)

            patched.setattr(os, "scandir", refuse)
        else:
            patched.setattr(os, "access", lambda path, mode: os.fspath(path) != os.fspath(shut))
        with pytest.raises(InputError, match=r"more cannot be read \(Permission denied\): allow it, or move"):
            open_source(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert list(open_source(tmp_path).texts("text")) == ["a"]
