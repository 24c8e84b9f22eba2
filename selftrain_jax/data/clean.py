"""The audit as a stage: a training text without the documents that overlap with a benchmark.

Corpora and text files alike are written again without the flagged documents, so that later stages read nothing else.
"""

import dataclasses
import pathlib
from typing import Any, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import read_jsonl, write_json, write_jsonl
from selftrain_jax.data.audit import AuditResult, audit, load_benchmark_texts
from selftrain_jax.data.corpus import Document, read_corpus, summarize, write_corpus
from selftrain_jax.data.settings import AuditConfig
from selftrain_jax.data.texts import load_texts


@dataclasses.dataclass(frozen=True)
class Text:
    """One document of a text file; `id` is its position."""

    id: int
    text: str


def audit_corpus(
    source: pathlib.Path, benchmarks: Mapping[str, pathlib.Path], config: AuditConfig, directory: pathlib.Path
) -> dict[str, Any]:
    """Writes `audit.json` and the clean `corpus/` into `directory`.

    Raises:
      InputError: no document is left.
    """
    corpus = read_corpus(source)
    documents = list(corpus)
    outcome, clean = _filter(documents, benchmarks, config)
    write_corpus(directory / "corpus", clean, corpus.manifest["provenance"] | {"audited": dataclasses.asdict(config)})
    return _write(
        directory, outcome, len(documents), config, _histogram(corpus.manifest["nll"], summarize(clean)["nll"])
    )


def audit_texts(
    source: pathlib.Path, benchmarks: Mapping[str, pathlib.Path], config: AuditConfig, directory: pathlib.Path
) -> dict[str, Any]:
    """Writes `audit.json` and the clean `texts.jsonl` into `directory`; `InputError` when no text is left."""
    texts = [Text(i, text) for i, text in enumerate(load_texts(source))]
    outcome, clean = _filter(texts, benchmarks, config)
    write_jsonl(directory / "texts.jsonl", map(dataclasses.asdict, clean))
    return _write(directory, outcome, len(texts), config, None)


def clean_documents(directory: pathlib.Path) -> tuple[list[Document] | list[Text], dict[str, Any] | None]:
    """What the audit in `directory` let through, and the provenance of the corpus (None for a text file)."""
    if (directory / "texts.jsonl").is_file():
        return [Text(**row) for row in read_jsonl(directory / "texts.jsonl", ("id", "text"), "audited texts")], None
    corpus = read_corpus(directory / "corpus")
    return list(corpus), corpus.manifest["provenance"]


def _filter(documents: list[Any], benchmarks, config: AuditConfig) -> tuple[AuditResult | None, list[Any]]:
    """The audit's outcome (None without benchmarks) and the documents it lets through, of which there must be one."""
    if not benchmarks:
        return None, documents
    outcome = audit(documents, {name: load_benchmark_texts(path) for name, path in benchmarks.items()}, config)
    flagged = set(outcome.flagged)
    clean = [d for d in documents if d.id not in flagged]
    if not clean:
        raise InputError(
            f"the audit (ngram={config.ngram}, threshold={config.threshold}) flagged all {len(documents)} documents, "
            "none "
            "is left to train on: raise ngram or threshold, or check the benchmark files"
        )
    return outcome, clean


def _histogram(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    """Documents by their likelihood, before and after the audit; None for a corpus without log-probabilities."""
    if before is None or after is None:
        return None
    before, after = before["histogram"], after["histogram"]
    return {"edges": before["edges"], "before": before["counts"], "after": after["counts"]}


def _write(directory, outcome, num_documents, config, histogram) -> dict[str, Any]:
    found = {
        "ngram": config.ngram,
        "threshold": config.threshold,
        "num_documents": num_documents,
        "num_flagged": len(outcome.flagged) if outcome else 0,
        "benchmarks": {n: dataclasses.asdict(c) for n, c in outcome.benchmarks.items()} if outcome else {},
        "nll_histogram": histogram,
        "flagged": list(map(int, outcome.flagged)) if outcome else [],
    }
    write_json(directory / "audit.json", found)
    return {name: found[name] for name in ("num_documents", "num_flagged")}
