"""Token arrays of one tokenizer become probes of another without moving their boundary."""

import json

import numpy as np
import pytest
import tokenizers

from selftrain_jax.errors import InputError
from selftrain_jax.evaluation.probes import convert_arrays


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


def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, tokenizer_pair):
    old, _ = tokenizer_pair
    ids = np.array([[old["a"], old["c"]]])
    np.save(tmp_path / "good.npy", ids)
    np.save(tmp_path / "float.npy", ids.astype(float))
    np.save(tmp_path / "more.npy", np.repeat(ids, 2, axis=0))
    np.save(tmp_path / "unknown.npy", ids + 1000)
    (tmp_path / "text.npy").write_text("not an array")
    for bad in ("float", "more", "unknown", "text", "missing"):
        with pytest.raises(InputError, match=f"{bad}.npy"):
            convert_arrays(
                tmp_path / "good.npy", tmp_path / f"{bad}.npy", str(tmp_path / "old"), str(tmp_path / "new"),
                tmp_path / "out.jsonl",
            )  # fmt: skip
    assert not (tmp_path / "out.jsonl").exists()
