"""Probe files from token arrays of another tokenizer (their boundary unmoved), from texts and from data sets of
tokens.
"""

import json

import numpy as np
import pandas as pd
import pytest
import tokenizers

from selftrain_jax.cli.main import main
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.evaluation.probes import MEMORIZED_EVALS, convert_arrays, dataset_probes, text_probes, window_probes


def save_tokenizer(directory, words):
    """A tokenizer that cuts text into `words` (longest first) and single characters."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *dict.fromkeys([*"abc ", *words])])}
    merges = [(word[:-1], word[-1]) for word in words]
    model = tokenizers.models.BPE(vocab=vocab, merges=merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = tokenizers.decoders.Fuse()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return vocab


@pytest.fixture
def tokenizer_pair(tmp_path):
    return save_tokenizer(tmp_path / "old", ["ab"]), save_tokenizer(tmp_path / "new", ["bc"])


def test_pairs_are_retokenized_and_split_boundaries_dropped(tmp_path, tokenizer_pair):
    old, new = tokenizer_pair
    # "ab" + "ca" keeps its boundary only where the new tokenizer does not merge b and c across it.
    np.save(tmp_path / "p.npy", np.array([[old["ab"], old["a"]], [old["a"], old["b"]]]))
    np.save(tmp_path / "s.npy", np.array([[old["c"], old["ab"]], [old["c"], old["a"]]]))
    counts = convert_arrays(
        tmp_path / "p.npy", tmp_path / "s.npy", str(tmp_path / "old"), str(tmp_path / "new"), tmp_path / "out.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert counts == {"read": 2, "written": 1, "dropped": 1}
    assert rows == [{"prefix": [new["a"], new["b"], new["a"]], "suffix": [new["c"], new["a"], new["b"]]}]


def save_sentencepiece(directory, words):
    """A tokenizer as Llama's: a space is a part of the word after it, and none is decoded before a whole text."""
    tokens = ["<unk>", *dict.fromkeys("".join(words)), "\u2581"]
    merges = []
    for word in words:
        pieces = ["\u2581" + word[:n] for n in range(1, len(word) + 1)]
        merges += [(before, after[-1]) for before, after in zip(["\u2581", *pieces], pieces)]
        tokens += pieces
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    model = tokenizers.models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), unk_token="<unk>")
    tokenizer, (normalizers, decoders) = tokenizers.Tokenizer(model), (tokenizers.normalizers, tokenizers.decoders)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def save_bytes(directory):
    """A tokenizer of one token per byte."""
    level = tokenizers.pre_tokenizers.ByteLevel
    vocab = {character: i for i, character in enumerate(sorted(level.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def test_the_space_at_a_border_is_kept_where_a_tokenizer_decodes_none_before_a_text(tmp_path):
    old, new = save_sentencepiece(tmp_path / "old", ["the", "cat", "on", "mat"]), save_bytes(tmp_path / "new")
    ids = old.encode("the cat on the mat").ids
    np.save(tmp_path / "p.npy", [ids[:3]])
    np.save(tmp_path / "s.npy", [ids[3:]])
    for target, tokenizer in (("new", new), ("old", old)):
        arguments = (tmp_path / "p.npy", tmp_path / "s.npy", str(tmp_path / "old"), str(tmp_path / target))
        assert convert_arrays(*arguments, tmp_path / "out.jsonl")["dropped"] == 0
        [row] = rows_of(tmp_path / "out.jsonl")
        assert tokenizer.decode(row["prefix"]) == "the cat on"
        assert row["prefix"] + row["suffix"] == tokenizer.encode("the cat on the mat").ids
    assert row == {"prefix": ids[:3], "suffix": ids[3:]}


@pytest.mark.parametrize("at, until, kept", [(1, None, True), (4, None, True), (2, None, False), (1, 3, False)])
@pytest.mark.parametrize("text", ["a\u20acb", "a\ufffdb"])  # the second is no half character: it stands there
def test_pairs_that_are_cut_within_a_character_are_dropped(tmp_path, text, at, until, kept):
    tokenizer = save_bytes(tmp_path / "bytes")
    ids = tokenizer.encode(text).ids[:until]  # of one, three and one byte
    for name, half, whole in (("p", ids[:at], [0] * at), ("s", ids[at:], [0] * len(ids[at:]))):
        np.save(tmp_path / f"{name}.npy", [half, whole])  # the second is a pair without fault
    model, out = str(tmp_path / "bytes"), tmp_path / "out.jsonl"
    counts = convert_arrays(tmp_path / "p.npy", tmp_path / "s.npy", model, model, out)
    assert counts == {"read": 2, "written": 1 + kept, "dropped": 1 - kept}
    assert [row["prefix"] + row["suffix"] for row in rows_of(out)] == [ids] * kept + [[0] * len(ids)]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_pairs_of_texts_become_probes_and_borders_within_a_token_are_named(tmp_path, tokenizer_pair, ending):
    _, new = tokenizer_pair  # which merges b and c
    rows = [
        {"prefix": "a b", "suffix": "ca", "id": "cut"},
        {"prefix": "a\n,", "suffix": 'bc"', "id": "kept", "repeats": 8, "cluster": "7", "offset": 3},
        {"prefix": "c", "suffix": "b", "id": "named", "group": "mine", "repeats": 8},
    ]
    path, frame = tmp_path / f"pairs.{ending}", pd.DataFrame(rows).convert_dtypes()
    write = {
        "jsonl": lambda: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        "json": lambda: path.write_text(json.dumps(rows)),
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "parquet": lambda: frame.to_parquet(path),
    }
    write[ending]()
    with pytest.warns(InputWarning, match=r"1 of 3 do not keep their border .*: cut; they are left out"):
        counts = text_probes(path, str(tmp_path / "new"), tmp_path / "out.jsonl")
    assert counts == {"read": 3, "written": 2, "dropped": 1}
    kept, named = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert named == {"prefix": [new["c"]], "suffix": [new["b"]], "id": "named", "group": "mine"}
    assert kept["suffix"][0] == new["bc"] and kept["prefix"][0] == new["a"]
    about = {name: value for name, value in kept.items() if name not in ("prefix", "suffix")}
    assert about == {"id": "kept", "group": "repeats=8", "cluster": "7", "offset": 3}


def test_a_suffix_has_the_tokens_that_it_has_after_its_prefix(tmp_path):
    """Alone, it would have a space of its own, as SentencePiece puts before every text."""
    vocab = save_tokenizer(tmp_path / "spaced", [" a", " b"])
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "spaced" / "tokenizer.json"))
    tokenizer.normalizer = tokenizers.normalizers.Prepend(" ")
    tokenizer.save(str(tmp_path / "spaced" / "tokenizer.json"))
    write_jsonl(tmp_path / "pairs.jsonl", [{"prefix": "a", "suffix": " b"}])
    assert text_probes(tmp_path / "pairs.jsonl", str(tmp_path / "spaced"), tmp_path / "out.jsonl")["written"] == 1
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prefix": [vocab[" a"]], "suffix": [vocab[" b"]]}


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"prefix": "b", "suffix": "c"}] * 7, "7 of 7 do not keep .*: 1, 2, 3, 4, 5, ...; move the border"),
        ([{"prefix": "a"}], "item 1: missing field.* suffix"),
        ([{"prefix": "a", "suffix": None}], "item 1: missing field.* suffix"),
        ([{"prefix": "a", "suffix": "b"}, {"prefix": "a", "suffix": ""}], "item 2: neither prefix nor suffix may be"),
        ([{"prefix": "a", "suffix": 1}], "item 1: suffix must be a text"),
        ([{"prefix": "a", "suffix": "b", "repeats": "many"}], "item 1: repeats='many' must be a count"),
        ([], "holds no pairs"),
    ],
)
def test_pairs_that_make_no_probe_are_refused_and_nothing_is_written(tmp_path, tokenizer_pair, rows, words):
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=words):
        text_probes(tmp_path / "pairs.jsonl", str(tmp_path / "new"), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("column", ["id", "index", "cluster", "document"])
@pytest.mark.parametrize("names", [["01", "1", "2020-01-01"], ["20000000000000000001", "20000000000000000002", "3"]])
def test_names_in_a_table_are_no_numbers(tmp_path, tokenizer_pair, column, names):
    """As numbers, 01 and 1 would be one, twenty digits lose the last, and dates are none that a probe file can hold."""
    pairs = zip(["a,a", "a,c", "c,a"], names)
    (tmp_path / "pairs.csv").write_text(f"prefix,suffix,{column}\n" + "".join(f"{p},{name}\n" for p, name in pairs))
    text_probes(tmp_path / "pairs.csv", str(tmp_path / "new"), tmp_path / "out.jsonl")
    found = [json.loads(line)[column] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == names


def test_a_column_twice_is_refused(tmp_path, tokenizer_pair):
    (tmp_path / "pairs.csv").write_text("prefix,suffix\na,a\na,\n")
    with pytest.raises(InputError, match=r"pairs.csv, item 2: missing field\(s\) suffix \(an empty cell is none\)"):
        text_probes(tmp_path / "pairs.csv", str(tmp_path / "new"), tmp_path / "out.jsonl")
    (tmp_path / "pairs.csv").write_text("prefix,suffix,suffix\na,a,c\n")
    with pytest.raises(InputError, match="pairs.csv has the column 'suffix' twice"):
        text_probes(tmp_path / "pairs.csv", str(tmp_path / "new"), tmp_path / "out.jsonl")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, tokenizer_pair, ending, capsys):
    path = tmp_path / f"pairs.{ending}"
    path.write_bytes(b"\xff\xfe\x00")
    assert main(["probes", f"--pairs={path}", f"--target={tmp_path / 'new'}", f"--out={tmp_path / 'out.jsonl'}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"selftrain: error: pairs of texts {path}")


def test_a_table_whose_checksums_do_not_hold_is_refused(tmp_path, tokenizer_pair):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, plain = (
        tmp_path / "pairs.parquet",
        {"compression": "none", "use_dictionary": False, "write_statistics": False},
    )
    parquet.write_table(pyarrow.table({"prefix": ["aa"], "suffix": ["cc"]}), path, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"cc", b"ca"))
    with pytest.raises(InputError, match="pairs.parquet cannot be read: .*checksum"):
        text_probes(path, str(tmp_path / "new"), tmp_path / "out.jsonl")


def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, tokenizer_pair):
    old, _ = tokenizer_pair
    ids = np.array([[old["a"], old["c"]]])
    np.save(tmp_path / "good.npy", ids)
    np.save(tmp_path / "float.npy", ids.astype(float))
    np.save(tmp_path / "more.npy", np.repeat(ids, 2, axis=0))
    np.save(tmp_path / "unknown.npy", ids + 1000)
    np.save(tmp_path / "huge.npy", np.full_like(ids, 2**63, np.uint64))
    (tmp_path / "text.npy").write_text("not an array")
    with open(tmp_path / "archive.npy", "wb") as f:
        np.savez(f, ids)
    header = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "claims.npy").write_bytes(header.replace(b"(1, 2), }" + b" " * 10, b"(9999999999, 99), }"))
    (tmp_path / "broken.npy").write_bytes(header.replace(b"{'descr'", b"{('descr"))
    (tmp_path / "objects.npy").write_bytes(header.replace(b"<i8", b"|O "))
    for bad in ("huge", "float", "more", "unknown", "text", "missing", "archive", "claims", "broken", "objects"):
        with pytest.raises(InputError, match=f"{bad}.npy"):
            convert_arrays(
                tmp_path / "good.npy",
                tmp_path / f"{bad}.npy",
                str(tmp_path / "old"),
                str(tmp_path / "new"),
                tmp_path / "out.jsonl",
            )
    assert not (tmp_path / "out.jsonl").exists()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def letters(tmp_path):
    """A tokenizer of one token per letter, and a text set with a long, a short and a middling text."""
    vocab = save_tokenizer(tmp_path / "letters", [])
    texts = ["abcab cabca bcabc", "ab", "ccccaaaa"]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [[vocab[c] for c in text] for text in texts]


def test_windows_tile_every_text_and_never_leave_it(tmp_path, letters):
    out = tmp_path / "out.jsonl"
    counts = window_probes(tmp_path / "set.jsonl", str(tmp_path / "letters"), out, prefix_length=3, suffix_length=2)
    rows = rows_of(out)
    assert counts == {"texts": 3, "too_short": 1, "windows": 4, "written": 4}
    assert [(r["document"], r["offset"]) for r in rows] == [(1, 0), (1, 5), (1, 10), (3, 0)]
    for row in rows:
        ids = letters[row["document"] - 1][row["offset"] :]
        assert row["prefix"] == ids[:3] and row["suffix"] == ids[3:5]


def test_text_that_the_tokenizer_cannot_write_is_warned_of(tmp_path, letters):
    (tmp_path / "set.jsonl").write_text(json.dumps({"text": "abcxyz"}))
    with pytest.warns(InputWarning, match="set.jsonl: 50.0% of it is unknown to the tokenizer"):
        window_probes(
            tmp_path / "set.jsonl", str(tmp_path / "letters"), tmp_path / "o", prefix_length=1, suffix_length=1
        )


def test_stride_limit_and_seed_choose_windows(tmp_path, letters):
    def offsets(**options):
        out = tmp_path / "out.jsonl"
        window_probes(
            tmp_path / "set.jsonl", str(tmp_path / "letters"), out, prefix_length=3, suffix_length=2, **options
        )
        return [(r["document"], r["offset"]) for r in rows_of(out)]

    everything = offsets(stride=1)
    assert everything == [(1, i) for i in range(13)] + [(3, i) for i in range(4)]
    drawn = offsets(stride=1, limit=6)
    assert len(drawn) == 6 and drawn == sorted(drawn) and set(drawn) < set(everything)
    assert drawn == offsets(stride=1, limit=6, seed=0) != offsets(stride=1, limit=6, seed=1)
    assert offsets(stride=1, limit=99) == everything


def test_several_prefixes_lead_to_the_same_suffix(tmp_path, letters):
    """Each suffix once after one token and once after three, where the longest prefix fits."""
    out = tmp_path / "out.jsonl"
    lengths = {"prefix_length": (3, 1), "suffix_length": 2, "stride": 4}
    counts = window_probes(tmp_path / "set.jsonl", str(tmp_path / "letters"), out, **lengths)
    rows = rows_of(out)
    assert counts["windows"] == 5 and counts["written"] == len(rows) == 10
    assert [row["group"] for row in rows] == ["prefix=1", "prefix=3"] * 5
    for short, long in zip(rows[::2], rows[1::2]):
        assert short["suffix"] == long["suffix"] and long["prefix"][2:] == short["prefix"]
        assert short["offset"] == long["offset"] + 2 and short["document"] == long["document"]
        assert letters[long["document"] - 1][long["offset"] :][:5] == long["prefix"] + long["suffix"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prefix_length": (0, 2)}, "prefix_length=0"),
        ({"prefix_length": (2, 2)}, r"prefix_length=\(2, 2\) must name one length or more, each once"),
        ({"prefix_length": 0}, "prefix_length=0"),
        ({"suffix_length": -1}, "suffix_length=-1"),
        ({"stride": 0}, "stride=0"),
        ({"limit": 0}, "limit=0"),
        ({"prefix_length": 100}, "no text has 132 tokens"),
    ],
)
def test_windows_that_cannot_be_cut_are_named(tmp_path, letters, options, message):
    with pytest.raises(InputError, match=message):
        window_probes(tmp_path / "set.jsonl", str(tmp_path / "letters"), tmp_path / "out.jsonl", **options)


def test_a_broken_line_of_a_text_set_is_named(tmp_path, letters, capsys):
    (tmp_path / "set.jsonl").write_text('{"text": "abcabc"}\n{"text": \n')
    arguments = ["--text", tmp_path / "set.jsonl", "--target", tmp_path / "letters", "--out", tmp_path / "out.jsonl"]
    assert main(["probes", *map(str, arguments)]) == 2
    assert "set.jsonl, line 2: not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def saved(tmp_path):
    """A data set as EleutherAI's, saved: the first split as the memorized sequences', the second as the random
    ones'.
    """
    datasets = pytest.importorskip("datasets")
    tokens = np.arange(5 * 64).reshape(5, 64).tolist()
    columns = {"index": [7, 5, 3, 2, 1000], "tokens": tokens}
    memorized = datasets.Dataset.from_dict(columns)
    path = tmp_path / "memorized"
    datasets.DatasetDict({"deduped.70m": memorized, "duped.1.4b": memorized.select([1])}).save_to_disk(path)
    datasets.Dataset.from_dict({"Index": [4], "Tokens": [tokens[0][:40]]}).save_to_disk(tmp_path / "random")
    return path, columns


def test_rows_of_a_data_set_become_probes(tmp_path, saved):
    path, columns = saved
    out = tmp_path / "out.jsonl"
    assert dataset_probes(str(path), "deduped.70m", out) == {"read": 5, "written": 5}
    for row, index, tokens in zip(rows_of(out), columns["index"], columns["tokens"], strict=True):
        assert row == {"prefix": tokens[:32], "suffix": tokens[32:], "offset": 0, "index": index}
    assert (
        dataset_probes(str(path), "deduped.70m", out, prefix_length=8, suffix_length=4, limit=3, seed=1)["written"] == 3
    )
    found = rows_of(out)
    assert all(len(r["prefix"]) == 8 and len(r["suffix"]) == 4 for r in found)
    kept = [columns["index"].index(r["index"]) for r in found]
    assert kept == sorted(kept)
    assert dataset_probes(str(tmp_path / "random"), "train", out, prefix_length=20, suffix_length=20)["written"] == 1
    assert rows_of(out)[0]["index"] == 4


def test_a_data_set_that_does_not_fit_is_named(tmp_path, saved):
    path, _ = saved
    with pytest.raises(InputError, match=r"no split='duped.70m'; it has the splits deduped.70m, duped.1.4b"):
        dataset_probes(str(path), "duped.70m", tmp_path / "out.jsonl")
    with pytest.raises(
        InputError, match=r"random, row 1: 40 tokens are fewer than prefix_length=32 \+ suffix_length=32"
    ):
        dataset_probes(str(tmp_path / "random"), "train", tmp_path / "out.jsonl")
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(InputError, match="no column 'index' .its columns: text"):
        dataset_probes(str(tmp_path / "texts"), "train", tmp_path / "out.jsonl")
    twice = {"index": [1], "tokens": [[1] * 64], "Tokens": [[2] * 64]}
    datasets.Dataset.from_dict(twice).save_to_disk(tmp_path / "twice")
    with pytest.raises(InputError, match="the columns tokens and Tokens; rename one of them"):
        dataset_probes(str(tmp_path / "twice"), "train", tmp_path / "out.jsonl")
    for name, tokens in {"floats": [1.0] * 64, "texts": ["1"] * 64, "holes": [1, None] * 32, "text": "1 2 3"}.items():
        datasets.Dataset.from_dict({"index": [1], "tokens": [tokens]}).save_to_disk(tmp_path / "wrong" / name)
        with pytest.raises(InputError, match="row 1: tokens must be a list of ids, whole numbers"):
            dataset_probes(str(tmp_path / "wrong" / name), "train", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_without_the_hub_the_way_out_is_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=f"{MEMORIZED_EVALS}, split 'duped.70m', cannot be loaded .*hub.*save_to_disk"):
        dataset_probes(MEMORIZED_EVALS, "duped.70m", tmp_path / "out.jsonl")


@pytest.mark.hub
def test_memorized_evals_of_the_hub(tmp_path):
    counts = dataset_probes(MEMORIZED_EVALS, "deduped.70m", tmp_path / "out.jsonl", limit=10)
    assert counts == {"read": 411_448, "written": 10}


def test_the_command_takes_each_kind_of_source(tmp_path, letters, saved, capsys):
    out = tmp_path / "out.jsonl"
    common = ["--out", str(out), "--prefix-length", "3", "--suffix-length", "2"]
    text = ["--text", str(tmp_path / "set.jsonl"), "--target", str(tmp_path / "letters")]
    assert main(["probes", *text, *common, "--limit", "2"]) == 0 and len(rows_of(out)) == 2
    assert "4 windows, 2 written" in capsys.readouterr().out
    assert (
        main(["probes", "--dataset", str(saved[0]), "--split", "duped.1.4b", *common]) == 0 and len(rows_of(out)) == 1
    )
    assert main(["probes", *text, *common, "--prefix-length", "2,3"]) == 0 and len(rows_of(out)) == 8
    for wrong, message in [
        ([], "give one of --text, --dataset"),
        ([*text, "--dataset", "x"], "give one of --text, --dataset"),
        (["--dataset", "x"], "--split is missing"),
        (["--dataset", "x", "--split", "y", "--prefix-length", "2,3"], "several lengths are for --text alone"),
        (text[:2], "--target is missing"),
        (["--prefixes", "x.npy", "--target", "y"], "--suffixes, --source is missing"),
    ]:
        assert main(["probes", *common, *wrong]) == 2
        assert message in capsys.readouterr().err
