"""Repeated text, against a search by brute force."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import tokenizers

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.evaluation import leaks
from selftrain_jax.evaluation.memorization import Probe
from selftrain_jax.models.files.tokenizer import encode_texts, load_tokenizer
from tests.models.checkpoints import write_tokenizer

WORDS = tuple("abcdefgh")


@dataclasses.dataclass
class Document:
    id: int
    text: str


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), WORDS))


def written(rng, count, lengths=(0, 30)):
    return [" ".join(rng.choice(WORDS, rng.integers(*lengths))) for _ in range(count)]


def ends_of(text, known):
    """For every position of `text`, where the longest run from there ends that stands in one of `known`."""
    ends = []
    for i in range(len(text)):
        end = i
        while end < len(text) and any(text[i : end + 1] in k for k in known):
            end += 1
        ends.append(end)
    return ends


def longest_of(text, known):
    """(length, begin) of the longest run, the first of equal ones."""
    runs = [(end - i, i) for i, end in enumerate(ends_of(text, known))]
    return max(runs, key=lambda run: (run[0], -run[1]), default=(0, 0))


def runs_of(text, known, least):
    """How many runs of `least` there are that cannot be made longer on either side."""
    ends = ends_of(text, known)
    return sum(e - i >= least and (i == 0 or ends[i - 1] < e) for i, e in enumerate(ends))


@pytest.mark.parametrize(
    "known, text",
    [("e\u0301te\u0301 au cafe\u0301", "\u00e9t\u00e9 au caf\u00e9"), ("one\r\ntwo\rthree", "one\ntwo\nthree")],
    ids=["NFD", "line ends"],
)
def test_text_in_another_form_is_the_same_text(tmp_path, known, text):
    """A tokenizer may read one and write the other, and nothing would ever leak."""
    for a, b in ((known, text), (text, known)):
        write_jsonl(tmp_path / "known.jsonl", [{"text": a}])
        [row] = leaks.find_leaks([Document(0, f"x {b}!")], leaks.known_texts("k", tmp_path / "known.jsonl", None, 0, 9))
        assert (row["leaking"], row["most"]) == (1, len(text))


def test_what_has_no_token_repeats_nothing(tokenizer, tmp_path):
    """One unknown text is not another, though the ids are the same."""
    write_jsonl(tmp_path / "known.jsonl", [{"text": "p q r s t a b c d u"}])
    documents = [Document(0, "v w x y z v"), Document(1, "v w a b c d z")]
    [row] = leaks.find_leaks(documents, leaks.known_texts("k", tmp_path / "known.jsonl", tokenizer, 4, 0), tokenizer)
    assert row["leaking"] == 1 and row["most"] == 4 and row["shown"][0]["run"] == "a b c d"
    probe = Probe(*map(np.array, encode_texts(tokenizer, ["a p q b r s", "c d e f g h"])))
    documents = [Document(0, "x a v w b y z c"), Document(1, "e c d e f g h e")]
    for row in leaks.find_leaks(documents, leaks.known_probes([probe], tokenizer, 4, 4), tokenizer):
        assert row["leaking"] == 1 and row["shown"][0]["run"].strip() == "c d e f g h", row["unit"]


@pytest.mark.parametrize("capitals, told", [(0, False), (1, False), (2, True)])
def test_a_tokenizer_that_changes_characters_is_told(tmp_path, capitals, told):
    """What its model writes repeats no such text in characters, however much it does in tokens."""
    lowers = load_tokenizer(write_tokenizer(tmp_path / "lowers", WORDS))
    lowers.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    texts = [" ".join(WORDS[: 3 + i % 5] * (100 + i)) for i in range(10)]
    texts[:capitals] = [text.upper() for text in texts[:capitals]]
    write_jsonl(tmp_path / "known.jsonl", [{"text": text} for text in texts])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        leaks.known_texts("known", tmp_path / "known.jsonl", lowers, 3, 0)  # in tokens alone
        assert not said
        leaks.known_texts("known", tmp_path / "known.jsonl", lowers, 3, 3)
    assert told == any("changes characters" in str(of.message) and "in 2 of 10 texts" in str(of.message) for of in said)
    assert len(said) == told


def test_a_corpus_is_searched_exactly_in_tokens_and_characters(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(leaks, "_AT_ONCE", 200)  # several batches
    rng = np.random.default_rng(0)
    texts, reference = written(rng, 40, (0, 14)), written(rng, 3, (20, 40))
    texts[7] += " " + reference[1][:40] + " h " + reference[2][4:34]
    write_jsonl(tmp_path / "known.jsonl", [{"text": text} for text in reference])
    known = leaks.known_texts("book", tmp_path / "known.jsonl", tokenizer, 4, 7)
    documents = [Document(100 + i, text) for i, text in enumerate(texts)]
    of_tokens, of_characters = leaks.find_leaks(iter(documents), known, tokenizer, show=5)
    # One letter a token: tokens are compared as texts without spaces.
    for row, least, read in ((of_tokens, 4, lambda text: text.replace(" ", "")), (of_characters, 7, str)):
        sequences = [read(text) for text in reference]
        longest = [longest_of(read(text), sequences) for text in texts]
        runs = [runs_of(read(text), sequences, least) for text in texts]
        lengths = np.array([length for length, _ in longest])
        assert (row["reference"], row["group"], row["least"]) == ("book", "", least)
        assert row["documents"] == 40 and row["size"] == sum(len(read(text)) for text in texts)
        assert row["leaking"] == sum(lengths >= least) and row["runs"] == sum(runs) > row["leaking"] > 3
        assert row["most"] == lengths.max() and row["median"] == np.median(lengths)
        assert row["curve"] == [[n, np.mean(lengths >= n)] for n, _ in row["curve"]]
        assert row["curve"][-1][0] == row["most"]
        assert row["share"] == pytest.approx(row["leaking"] / 40) and row["low"] < row["share"] < row["high"]
        assert row["per_million"] == pytest.approx(1e6 * row["leaking"] / row["size"])
        assert row["per_million_low"] < row["per_million"] < row["per_million_high"]
        assert [one["length"] for one in row["shown"]] == sorted(lengths[lengths >= least].tolist())[::-1][:5]
        assert row["shown"][0]["id"] == 107
        for one in row["shown"]:
            text = read(texts[one["id"] - 100])
            assert (one["length"], one["begin"]) == longest[one["id"] - 100]
            assert read(one["run"]) == text[one["begin"] :][: one["length"]]
            assert read(one["run"]) in sequences[one["sequence"]]
            assert read(one["before"]) == text[: one["begin"]] and text.endswith(read(one["after"]))
    json.dumps([of_tokens, of_characters])


def test_planted_sequences_are_told_by_group_and_short_ones_count_whole(tokenizer):
    ids = encode_texts(tokenizer, ["a b c d e", "f g h a", "h h h h h h"])
    groups = ("repeats=4", "repeats=4", "repeats=0")
    probes = [Probe(np.array(one[:2]), np.array(one[2:]), group) for one, group in zip(ids, groups)]
    documents = [
        Document(i, text) for i, text in enumerate(["b a b c d e", "a b c d", "f g h", "h f g h a h a", "h h"])
    ]
    rows = leaks.find_leaks(documents, leaks.known_probes(probes, tokenizer, 50, 0), tokenizer)
    planted, never, every = rows
    assert (planted["group"], never["group"], every["group"]) == ("repeats=4", "repeats=0", "")
    # The run that counts is that of the group's shortest sequence.
    assert (planted["least"], planted["leaking"], planted["runs"], planted["most"]) == (4, 3, 3, 5)
    assert (never["least"], never["leaking"], never["most"]) == (6, 0, 2) and never["high"] > 0.4
    assert (every["leaking"], every["most"]) == (3, 5) and [one["id"] for one in every["shown"]] == [0, 1, 3]


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    level, folder = tokenizers.pre_tokenizers.ByteLevel, tmp_path_factory.mktemp("bytes")
    vocab = {character: i for i, character in enumerate(sorted(level.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer, backend.decoder = level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_a_sequence_that_begins_and_ends_within_characters_is_found(byte_tokenizer):
    tokenizer, text = byte_tokenizer, "\u65e5\u672c\u8a9e\u306e\u672c"  # of three bytes a character
    [ids] = encode_texts(tokenizer, [text])
    for begin, end, whole in ((0, 15, 5), (1, 15, 4), (2, 14, 3), (3, 13, 3), (1, 2, 1)):
        probe = Probe(np.array(ids[begin:end][:1]), np.array(ids[begin:end][1:], np.int32))
        [row] = leaks.find_leaks([Document(0, f"a{text}b")], leaks.known_probes([probe], tokenizer, 0, 200), tokenizer)
        assert (row["least"], row["leaking"]) == (whole, int(end - begin > 3))


DECOMPOSED = ("Ko\u0308ln fu\u0308r uns", "\u1112\u1161\u11ab\u1100\u1173\u11af" * 2, "\u0995\u09c7\u09be" * 4)


@pytest.mark.parametrize("text", DECOMPOSED)
def test_a_sequence_that_begins_or_ends_between_a_letter_and_its_mark_is_found(byte_tokenizer, text):
    """In Unicode form NFC, letter and mark are one character."""
    for begin in range(len(text)):
        for end in range(begin + 7, len(text) + 1):
            if text[begin:end].isascii():  # nothing says then that the text is in another form
                continue
            [ids] = encode_texts(byte_tokenizer, [text[begin:end]])
            probe = Probe(np.array(ids[:1]), np.array(ids[1:], np.int32))
            known = leaks.known_probes([probe], byte_tokenizer, 0, 200)
            [row] = leaks.find_leaks([Document(0, text), Document(1, "no such")], known, byte_tokenizer)
            assert row["leaking"] == 1, (begin, end)


def test_a_run_that_several_groups_hold_is_one_run_of_all(tokenizer):
    """And the run that counts for all is the shortest of any, not that of the group that comes first."""
    texts = {"a": "a b c d e f", "b": "h b c d e", "c": "f g h"}
    ids = {group: np.array(one) for group, one in zip(texts, encode_texts(tokenizer, list(texts.values())))}
    probes = [Probe(one[:2], one[2:], group) for group, one in ids.items()]
    document = Document(0, "a b c d e g f g h")
    rows = leaks.find_leaks([document], leaks.known_probes(probes, tokenizer, 4, 0), tokenizer)
    assert [(row["group"], row["least"], row["runs"]) for row in rows] == [
        ("a", 4, 1),  # a b c d e
        ("b", 4, 1),  # b c d e, a part of it
        ("c", 3, 1),
        ("", 3, 2),
    ]


def test_tokens_of_the_documents_are_taken_as_they_are(tokenizer):
    @dataclasses.dataclass
    class Sampled(Document):
        tokens: np.ndarray
        stop_reason: str

    probes = [Probe(np.array([1, 2]), np.array([3, 4]))]
    documents = [
        Sampled(0, "x", np.array([5, 1, 2, 3, 4, 5]), "length"),
        Sampled(1, "a b c d", np.array([5, 5, 0]), "eos"),  # the token that ends a document is no text
    ]
    (row,) = leaks.find_leaks(documents, leaks.known_probes(probes, tokenizer, 4, 0), tokenizer, encode=False)
    assert row["leaking"] == 1 and row["shown"][0]["run"] == "a b c d" and row["size"] == 8


def test_references_that_cannot_be_searched_are_named(tokenizer, tmp_path):
    def known(name, content, tokens=4, chars=4):
        (tmp_path / name).write_bytes(content)
        return leaks.known_texts("r", tmp_path / name, tokenizer, tokens, chars)

    with pytest.raises(InputError, match=r"latin.txt is not valid UTF-8 \(byte 1\): convert it first"):
        known("latin.txt", "aé b".encode("latin-1"))
    with pytest.raises(InputError, match="wide.txt .*UTF-8"):
        known("wide.txt", "a b c d e".encode("utf-16"))
    with pytest.raises(InputError, match="empty.txt holds no text"):
        known("empty.txt", b" \n")
    with pytest.raises(
        InputError, match="short.txt: no text has 4 tokens, the run that counts; .* 3: lower least_tokens"
    ):
        known("short.txt", b"a b c")
    with pytest.warns(InputWarning, match="some.jsonl: 1 of 2 texts have fewer than 9 characters, the run that"):
        write_jsonl(tmp_path / "some.jsonl", [{"text": "a b c"}, {"text": "a b c d e"}])
        leaks.known_texts("r", tmp_path / "some.jsonl", tokenizer, 0, 9)
    with pytest.raises(InputError, match="no text has 9 characters.* lower least_characters"):
        known("short.txt", b"a b c", tokens=0, chars=9)
    with pytest.raises(InputError, match="not found"):
        leaks.known_texts("r", tmp_path / "missing.txt", tokenizer, 4, 4)
    assert [one.unit for one in leaks.known_texts("r", tmp_path / "short.txt", None, 4, 4)] == ["characters"]
