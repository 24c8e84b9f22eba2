import gzip

import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.texts import load_texts, shuffle_words


def test_shuffling_keeps_the_words_of_each_text_and_loses_their_order():
    texts = ["a b c d e f g h", "", "one\ntwo  three four five six seven", "alone"]
    shuffled = shuffle_words(texts, seed=3)
    assert [sorted(text.split()) for text in shuffled] == [sorted(text.split()) for text in texts]
    assert shuffled[0] != texts[0] and shuffled[2].split() != texts[2].split()
    assert shuffled == shuffle_words(texts, seed=3) != shuffle_words(texts, seed=4)


def test_shuffling_keeps_every_character_of_a_word():
    words = ["a\0", "\0", "b\0c", "d", "\0\0e\0\0", "long" * 1000]
    (shuffled,) = shuffle_words([" ".join(words)], seed=0)
    assert sorted(shuffled.split()) == sorted(words)
    assert shuffle_words(["a b c d e f g h"], seed=3) == ["g h c b e f d a"], "the order that studies were made with"


def test_texts_that_cannot_be_shuffled_are_warned_of():
    with pytest.warns(InputWarning, match="1 of 3 texts have no white space within and stay as they are"):
        shuffle_words(["快速的棕色狐狸" * 10, "a b c d e f g h", "word"], seed=0)


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.jsonlines", "a.json", "a.jsonl.gz"])
def test_rows_are_texts_of_their_own_whatever_their_ending(tmp_path, name):
    content = b'{"text": "one"}\n{"text": ""}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert load_texts(tmp_path / name) == ["one", ""]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.html", "a"])
def test_other_endings_are_refused(tmp_path, name):
    (tmp_path / name).write_text("text\none\n")
    with pytest.raises(InputError, match="text set .* of no known kind: its name must end in .jsonl, .*, .txt, "):
        load_texts(tmp_path / name)


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff", "\u3164"])
def test_a_text_set_without_a_visible_character_is_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        load_texts(tmp_path / "a.txt")
