"""A generated world on disk: its tokenizer, question suites, extraction probes and texts."""

import os
import pathlib

from selftrain_jax.core.files import write_jsonl
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.questions import extraction_probes, question_suites
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer
from selftrain_jax.lab.world import World


def train_tokenizer(world: World, directory: str | os.PathLike) -> pathlib.Path:
    """Writes the world's word-level tokenizer to `directory` and returns it; its ids are those of `world.words`."""
    return save_tokenizer(build_tokenizer(world), directory)


def write_world_files(
    world: World, directory: str | os.PathLike, validation_documents: int = 2000, control_documents: int = 0
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
