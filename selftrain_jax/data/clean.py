"""The audit as a stage: it leaves the ids of what overlaps with a benchmark, which later stages leave out."""

import dataclasses
import pathlib
from typing import Any, Mapping, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import read_json, write_json
from selftrain_jax.data.audit import audit, load_benchmark_texts
from selftrain_jax.data.corpus import Corpus, Selection, read_corpus, summarize
from selftrain_jax.data.records import Document, Text
from selftrain_jax.data.settings import AuditConfig
from selftrain_jax.data.texts import load_documents


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """Where documents to train on are: a finished corpus, or a text file as `load_documents` takes it; exactly one."""

    corpus: pathlib.Path | None = None
    texts: pathlib.Path | None = None

    def __post_init__(self):
        if (self.corpus is None) == (self.texts is None):
            raise InputError(f"training text: give corpus={self.corpus} or texts={self.texts}, one of the two")

    def documents(self) -> Corpus | list[Text]:
        """All of them, before any audit."""
        if self.texts is None:
            return read_corpus(self.corpus)
        return [Text(place, text) for place, text in load_documents(self.texts).items()]


def audit_text(
    text: TrainingText,
    benchmarks: Mapping[str, pathlib.Path],
    config: AuditConfig,
    directory: pathlib.Path,
    template: str = "{question}",
) -> dict[str, Any]:
    """Writes `audit.json` into `directory`: the ids of the flagged documents (none without benchmarks), which of them
    are left out, and what was counted. `template` is that of `EvaluateSettings`.

    Raises:
      InputError: no document is left.
    """
    documents = text.documents()
    ids: list[int] = []

    def read():
        for document in documents.texts() if isinstance(documents, Corpus) else documents:
            ids.append(document.id)
            yield document

    flagged, left_out, counts = (), (), {}
    if benchmarks:
        loaded = {name: load_benchmark_texts(path, config.join_fields, template) for name, path in benchmarks.items()}
        outcome = audit(read(), loaded, config)
        flagged, left_out = outcome.flagged, outcome.left_out
        counts = {name: dataclasses.asdict(count) for name, count in outcome.benchmarks.items()}
    if len(left_out) == len(documents):
        raise InputError(
            f"the audit (ngram={config.ngram}, threshold={config.threshold}) flagged all {len(documents)} documents of "
            f"{text.corpus or text.texts}, none is left to train on: raise ngram or threshold, name benchmarks in "
            "count_only, or check their files"
        )
    found = {
        "ngram": config.ngram,
        "threshold": config.threshold,
        "num_documents": len(documents),
        "num_flagged": len(flagged),
        "num_left_out": len(left_out),
        "benchmarks": counts,
        "nll_histogram": _histogram(documents, np.flatnonzero(np.isin(ids, left_out))),
        "flagged": list(map(int, flagged)),
        "left_out": list(map(int, left_out)),
    }
    write_json(directory / "audit.json", found)
    return {name: found[name] for name in ("num_documents", "num_flagged", "num_left_out")}


def _histogram(documents: Corpus | list[Text], left_out: np.ndarray) -> dict[str, Any] | None:
    """Documents by their likelihood, before and after those at the positions `left_out` are left out; None where nobody
    measured log-probabilities."""
    nll = documents.manifest["nll"] if isinstance(documents, Corpus) else None
    if nll is None:
        return None
    before = nll["histogram"]["counts"]
    lost = summarize(documents.take(left_out))["nll"]["histogram"]["counts"] if left_out.size else [0] * len(before)
    after = [count - less for count, less in zip(before, lost)]
    return {"edges": nll["histogram"]["edges"], "before": before, "after": after}


def kept_documents(
    audited: pathlib.Path, text: TrainingText
) -> tuple[Sequence[Document] | Sequence[Text], dict[str, Any] | None]:
    """What the audit in `audited` let through of `text`, and the provenance of the corpus (None for a text file).

    Raises:
      InputError: the text has changed its size since it was audited.
    """
    found, documents = read_json(audited / "audit.json", "audit"), text.documents()
    if len(documents) != found["num_documents"]:
        raise InputError(
            f"{text.corpus or text.texts} has {len(documents)} documents, not the {found['num_documents']} that were "
            f"audited in {audited}: restore it, or audit it again"
        )
    left_out = set(found["left_out"])
    if not isinstance(documents, Corpus):
        return [document for document in documents if document.id not in left_out], None
    provenance = documents.manifest["provenance"]
    if not left_out:
        return documents, provenance
    kept = [i for i, document in enumerate(documents.texts()) if document.id not in left_out]
    return Selection(documents, kept), provenance
