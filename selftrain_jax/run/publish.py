"""A corpus as a Hugging Face data set: Parquet, and a card that says who wrote it and how."""

import itertools
import json
import os
import pathlib
from typing import Any

from selftrain_jax import __version__
from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError
from selftrain_jax.data.corpus import Corpus, read_corpus
from selftrain_jax.run.export import literal, without_places
from selftrain_jax.run.references import check_current, open_run
from selftrain_jax.run.stages import record_of

_ROWS = 4096
_PARQUET = "data/train-00000-of-00001.parquet"
_LICENCE = """\
## Licence

Which rights there are in text that a model wrote, or that was imported, follows from the licence of that model, or of
that text, and from its training data; this card cannot say. `license` is left open above: fill it in before you share
this data set. Nothing here looked for personal data, or for sequences that the model learned by heart.
"""


def publish(source: pathlib.Path, directory: pathlib.Path) -> int:
    """Writes the corpus `source` as a data set that `datasets.load_dataset(directory)` reads; returns its number of
    documents.

    Columns are those of a corpus, and `left_out`, whether the audit of the run that the corpus lies in left the
    document out; null where there is no audit.

    Raises:
      InputError: `source` is no finished corpus, its audit is stale or of another one, pyarrow is missing, or
        `directory` is there and not empty. Nothing is left behind.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError("publish writes Parquet, which needs pyarrow: pip install 'selftrain_jax[datasets]'") from None
    corpus = read_corpus(source)
    audit = _audit(source, len(corpus))
    left_out = None if audit is None else set(audit["left_out"])
    schema = pa.schema(
        {
            "id": pa.int64(),
            "text": pa.string(),
            "tokens": pa.list_(pa.int32()),
            "log_probs": pa.list_(pa.float32()),
            "stop_reason": pa.string(),
            "left_out": pa.bool_(),
        }
    )
    with files.new_directory(directory, "data set") as made:
        (made / _PARQUET).parent.mkdir()
        with parquet.ParquetWriter(made / _PARQUET, schema) as writer:
            documents = iter(corpus)
            while batch := list(itertools.islice(documents, _ROWS)):
                rows = {name: [getattr(d, name) for d in batch] for name in schema.names[:-1]}
                rows["left_out"] = [None if left_out is None else d.id in left_out for d in batch]
                writer.write_table(pa.table(rows, schema=schema))
        files.write_atomic(made / "README.md", _card(directory.name, corpus, audit))
    return len(corpus)


def _audit(source: pathlib.Path, num_documents: int) -> dict[str, Any] | None:
    """What the audit of the run that `source` lies in found; None for a corpus elsewhere."""
    for place in map(pathlib.Path, (os.path.abspath(source), os.path.realpath(source))):  # a link may lead there
        arm, workdir = place.parent.name, place.parent.parent.parent
        path = workdir / "audit" / arm / "audit.json"
        if (place.parent.parent.name, place.name) == ("sample", "corpus") and path.is_file():
            break
    else:
        return None
    if (workdir / "config.json").is_file():
        check_current(open_run(workdir), f"sample/{arm}", f"audit/{arm}")
    else:  # a part of a run, perhaps of two
        sampled, audited = (record_of(workdir, f"{kind}/{arm}") or {} for kind in ("sample", "audit"))
        if not sampled or audited.get("inputs", {}).get(f"sample/{arm}") != sampled.get("fingerprint"):
            raise InputError(
                f"nothing tells whether {path.parent} is the audit of {source}: copy the whole run, or the corpus alone"
            )
    found = files.read_json(path, "audit")
    if found["num_documents"] != num_documents:
        raise InputError(
            f"{source} has {num_documents} documents, not the {found['num_documents']} that were audited in "
            f"{path.parent}: run `selftrain audit` again"
        )
    return found


def _card(name: str, corpus: Corpus, audit: dict[str, Any] | None) -> str:
    """The text of `README.md`: what the documents are, the audit, the licence that is open, and how they were made."""
    manifest = corpus.manifest
    made = without_places(manifest["provenance"])
    front = ["---", "tags:", "- selftrain_jax", *(["- synthetic"] if "model" in made else []), "configs:"]
    front += ["- config_name: default", "  data_files:", "  - split: train", f"    path: {json.dumps(_PARQUET)}", "---"]
    who = literal(made["model"]) if "model" in made else "another generator"
    several = f"of {made['accumulated']} corpora, the newest of which was " if "accumulated" in made else ""
    length = manifest["length"]
    lines = [*front, "", f"# {literal(name)}", ""]
    lines += [
        f"{manifest['num_documents']:,} documents, {manifest['num_tokens']:,} tokens, {several}written by {who}"
        + (" after its start alone (`start_ids` below), without any prompt." if "model" in made else "."),
        f"Length {length['mean']:.1f} tokens on average, {length['min']} to {length['max']}. "
        f"Written out by selftrain_jax {__version__}.",
        "",
        "## Audit",
        "",
    ]
    if audit is None:
        lines += ["No audit lies beside this corpus: whether any benchmark stands in it is not known here.", ""]
    elif not audit["benchmarks"]:
        lines += ["No benchmark was looked for in these documents.", ""]
    else:
        lines += [
            f"Documents that share {audit['threshold']} or more runs of {audit['ngram']} words with a benchmark; "
            f"{audit['num_left_out']} of {audit['num_documents']} were left out of training (column `left_out`).",
            "",
            "| benchmark | documents | texts looked for |",
            "|---|---|---|",
            *(f"| {literal(k)} | {v['flagged_documents']} | {v['texts']} |" for k, v in audit["benchmarks"].items()),
            "",
        ]
    return "\n".join([*lines, _LICENCE, "## Provenance", "", "```json", files.json_text(made, indent=2), "```", ""])
