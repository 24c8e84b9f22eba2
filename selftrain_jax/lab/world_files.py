"""A world on disk, generated or of real text: its tokenizer, question suites, extraction probes and texts.

A folder holds `tokenizer/`, `suites/NAME.jsonl`, `probes.jsonl` in ids of that tokenizer, `validation.jsonl` and, where
there are any, `control.jsonl`; of real text also `planted.jsonl` and `documents-STREAM.jsonl`. Later stages read these
and never the source.
"""

import dataclasses
import os
import pathlib
from typing import Any, Mapping, Sequence

from selftrain_jax.core.files import Fingerprints, write_jsonl
from selftrain_jax.lab import questions, text_world
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.planted import Planted, extraction_probes
from selftrain_jax.lab.settings import HELD_OUT_STREAMS, LineageConfig
from selftrain_jax.lab.text_world import TextWorld
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer
from selftrain_jax.lab.world import World, build_world


def world_inputs(lineage: LineageConfig) -> Fingerprints:
    """Those of the files that the world is made from, none of a generated one."""
    return Fingerprints({}) if lineage.text is None else text_world.inputs(lineage.text)


def write_world(lineage: LineageConfig, directory: str | os.PathLike) -> None:
    """Makes the world of `lineage` and writes it to `directory`, every file atomically."""
    counts = lineage.validation_documents, lineage.control_documents
    if lineage.text is None:
        write_generated_world(build_world(lineage.world), directory, *counts)
    else:
        _write_text_world(text_world.build_text_world(lineage.text, *counts), directory)


def write_generated_world(
    world: World, directory: str | os.PathLike, validation_documents: int, control_documents: int = 0
) -> dict[str, pathlib.Path]:
    """Writes a generated world; the documents are of the streams "validation" and "control".

    Returns:
      Paths by name: "tokenizer" (a folder), one per question suite, "probes", "validation" and, when asked, "control".
    """
    counts = zip(HELD_OUT_STREAMS, (validation_documents, control_documents))
    texts = {stream: document_texts(world, *generate_documents(world, count, stream)) for stream, count in counts}
    return _write(directory, build_tokenizer(world), questions.question_suites(world), world.planted_texts(), texts)


def _write_text_world(world: TextWorld, directory: str | os.PathLike) -> None:
    texts = {"validation": world.validation, "control": world.control}
    texts |= {f"documents-{name}": documents for name, documents in world.streams.items()}
    _write(directory, world.tokenizer, world.suites, world.planted, texts)
    write_jsonl(pathlib.Path(directory) / "planted.jsonl", map(dataclasses.asdict, world.planted))


def _write(
    directory: str | os.PathLike,
    tokenizer: Any,
    suites: Mapping[str, Sequence[dict]],
    planted: Sequence[Planted],
    texts: Mapping[str, Sequence[str]],
) -> dict[str, pathlib.Path]:
    directory = pathlib.Path(directory)
    (directory / "suites").mkdir(parents=True, exist_ok=True)
    rows = {f"suites/{name}": suite for name, suite in suites.items()}
    rows["probes"] = extraction_probes(planted, tokenizer)
    rows |= {name: [{"text": text} for text in texts] for name, texts in texts.items() if texts or name != "control"}
    paths = {"tokenizer": save_tokenizer(tokenizer, directory / "tokenizer")}
    for name, lines in rows.items():
        paths[name.split("/")[-1]] = directory / f"{name}.jsonl"
        write_jsonl(directory / f"{name}.jsonl", lines)
    return paths
