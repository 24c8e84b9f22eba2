"""A generated world on disk: its tokenizer, question suites, extraction probes and texts."""

import json
import os
import pathlib

from selftrain_jax.errors import InputError
from selftrain_jax.files import write_atomic, write_json, write_jsonl
from selftrain_jax.lab import grammar
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.questions import extraction_probes, question_suites
from selftrain_jax.lab.world import World


def train_tokenizer(world: World, directory: str | os.PathLike) -> pathlib.Path:
    """Trains a word-level tokenizer on the world's words and writes it where `AutoTokenizer.from_pretrained` reads it.

    Words are separated by white space; "<|endoftext|>" is id 0, BOS and EOS; nothing is added when encoding. Token ids
    are those of `world.words`.

    Returns:
      `directory`, which holds tokenizer.json, tokenizer_config.json and special_tokens_map.json.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=grammar.UNKNOWN))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=len(world.words), special_tokens=[grammar.END_OF_TEXT, grammar.UNKNOWN], show_progress=False
    )
    ordinary = world.words[2:]
    # The trainer hands out ids by falling frequency: leading parts of the word list give the first word the highest.
    tokenizer.train_from_iterator((" ".join(ordinary[:n]) for n in range(1, len(ordinary) + 1)), trainer)
    if tokenizer.get_vocab() != world.index:
        raise InputError("the installed tokenizers library numbers words in another order; use 0.20 or later")
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": grammar.END_OF_TEXT, "eos_token": grammar.END_OF_TEXT, "unk_token": grammar.UNKNOWN}
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


def write_world_files(
    world: World,
    directory: str | os.PathLike,
    validation_documents: int = 2000,
    control_documents: int = 0,
) -> dict[str, pathlib.Path]:
    """Writes what the later stages read about the world, every file atomically.

    Args:
      world: the world.
      directory: made when missing.
      validation_documents: documents of the stream "validation" in validation.jsonl.
      control_documents: documents of the stream "control" in control.jsonl; the file is left out at 0.

    Returns:
      Paths by name: "tokenizer" (a folder), one per question suite, "probes", "validation" and, when asked, "control".
    """
    directory = pathlib.Path(directory)
    (directory / "suites").mkdir(parents=True, exist_ok=True)
    paths = {"tokenizer": train_tokenizer(world, directory / "tokenizer")}
    for name, rows in question_suites(world).items():
        paths[name] = directory / "suites" / f"{name}.jsonl"
        write_jsonl(paths[name], rows)
    paths["probes"] = directory / "probes.jsonl"
    write_jsonl(paths["probes"], extraction_probes(world))
    for stream, count in (("validation", validation_documents), ("control", control_documents)):
        if count or stream == "validation":
            paths[stream] = directory / f"{stream}.jsonl"
            texts = document_texts(world, *generate_documents(world, count, stream))
            write_jsonl(paths[stream], ({"text": text} for text in texts))
    return paths
