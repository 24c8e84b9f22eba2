"""The tokenizers of a generated world: one id per word, or pieces of words; and the byte-level one of real text.

Those of a world separate words by white space, read and write single spaces, and begin every word with a token of its
own: a cut between two words is a cut between two tokens. "<|endoftext|>" is id 0, BOS and EOS, in all of them; nothing
is added when encoding."""

import json
import os
import pathlib
from typing import Any, Iterable, Sequence

import jaxtyping as jt
import numpy as np

from selftrain_jax.core.files import write_atomic, write_json
from selftrain_jax.lab import grammar
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.world import World

BPE_DOCUMENTS = 10_000
"""Documents of the stream "tokenizer" that the merges of a BPE tokenizer are learned from."""


def build_tokenizer(world: World, kind: str = "words", bpe_vocab_size: int = 512) -> Any:
    """The `tokenizers.Tokenizer` of `world`: a pure function of the arguments, so that models of one family share it.

    Args:
      kind: "words": the ids are those of `world.words`. "bpe": pieces of words, merged as in Sennrich et al. 2016
        (section 3.2) on fresh text of the world.
      bpe_vocab_size: ids of a "bpe" tokenizer; fewer where every word is one token before.
    """
    return _words(world) if kind == "words" else _bpe(world, bpe_vocab_size)


def save_tokenizer(tokenizer: Any, directory: str | os.PathLike) -> pathlib.Path:
    """Writes a tokenizer of `build_tokenizer` or `byte_level_bpe` where `AutoTokenizer.from_pretrained` reads it.

    Returns:
      `directory`, which holds tokenizer.json, tokenizer_config.json and special_tokens_map.json.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": grammar.END_OF_TEXT, "eos_token": grammar.END_OF_TEXT}
    if tokenizer.token_to_id(grammar.UNKNOWN) is not None:  # bytes are never unknown, and a name would add an id
        special["unk_token"] = grammar.UNKNOWN
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "add_bos_token": False,
            "add_eos_token": False,
            # Otherwise decoding glues "." to the word before it, and the text no longer encodes to its tokens.
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(directory / "special_tokens_map.json", special)
    write_atomic(directory / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), indent=1) + "\n")
    return directory


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """The `tokenizers.Tokenizer` of Radford et al. 2019 (GPT-2, section 2.2), merges learned from `texts`.

    It reads any text and begins a token at every space that follows a word.

    Args:
      vocab_size: ids at most, "<|endoftext|>" and the 256 bytes among them.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return _merged(tokenizer, texts, vocab_size, [grammar.END_OF_TEXT], tokenizers.pre_tokenizers.ByteLevel.alphabet())


def spell_documents(
    world: World,
    tokenizer: Any,
    tokens: jt.Int32[np.ndarray, "words"],
    offsets: jt.Int64[np.ndarray, "documents_plus_1"],
) -> tuple[jt.Int32[np.ndarray, "tokens"], jt.Int64[np.ndarray, "documents_plus_1"]]:
    """Documents of `generate_documents` under another tokenizer of the world, in the same form.

    The same ids as `tokenizer` gives for the text of each document, and end-of-text: since no token reaches over a
    word's beginning, each word is encoded once and looked up.
    """
    spelled = tokenizer.encode_batch(list(world.words), add_special_tokens=False)
    lengths = np.array([len(word.ids) for word in spelled])
    table = np.zeros((len(spelled), lengths.max()), np.int32)
    for row, word in zip(table, spelled):
        row[: len(word.ids)] = word.ids
    used = np.arange(table.shape[1]) < lengths[tokens][:, None]
    ends = np.concatenate([[0], np.cumsum(lengths[tokens])])
    return table[tokens][used], ends[offsets]


def _words(world: World) -> Any:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(world.index), unk_token=grammar.UNKNOWN))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([grammar.END_OF_TEXT, grammar.UNKNOWN])
    return tokenizer


def _bpe(world: World, vocab_size: int) -> Any:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=grammar.UNKNOWN))
    # "anna smiled" is "▁anna" and "▁smiled", and so is what follows an end-of-text: a word is spelled alike everywhere.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
    texts = document_texts(world, *generate_documents(world, BPE_DOCUMENTS, "tokenizer"))
    # Rare words need not occur in the text that the merges are learned from.
    alphabet = set("".join(world.words[2:]))
    return _merged(tokenizer, texts, vocab_size, [grammar.END_OF_TEXT, grammar.UNKNOWN], alphabet)


def _merged(
    tokenizer: Any, texts: Iterable[str], vocab_size: int, special: Sequence[str], alphabet: Iterable[str]
) -> Any:
    """`tokenizer` with merges learned from `texts`."""
    import tokenizers

    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
