"""Single probes and documents of a run, for the reader of its page."""

from typing import Any, Mapping, Sequence

import numpy as np

from selftrain_jax.core.files import read_json
from selftrain_jax.data.corpus import Corpus
from selftrain_jax.data.subset import evenly_spread
from selftrain_jax.evaluation import memorization
from selftrain_jax.evaluation.items import Items
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.report.data import Listing
from selftrain_jax.report.metric import HELD_OUT, Metric
from selftrain_jax.run import facts
from selftrain_jax.run.names import RunNames

MOST_PROBES, MOST_DOCUMENTS = 500, 300
MOST_CHARS = 200
"""Of a prefix its end is shown, of a suffix and of a document its beginning."""


def shown(
    run: RunNames,
    items: Mapping[str, Items],
    masks: Sequence[Mapping[Metric, np.ndarray]],
    corpus: Corpus,
    manifests: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """`listings`, `tokens` and `device_hours` of `ReportData`; `masks` by subset, as of `summary.probe_masks`."""
    found = {"documents": _documents(run, corpus)}
    if run.config.evaluate.probes:
        found["probes"] = _probes(run, items, masks[0])
    read = {
        name: facts.tokens(name, manifest["result"], run.config.train, run.workdir)
        for name, manifest in manifests.items()
        if name.partition("/")[0] in ("sample", "train")
    }
    return {"listings": found, "tokens": read, "device_hours": facts.device_hours(manifests.values())}


def _probes(run: RunNames, items: Mapping[str, Items], masks: Mapping[Metric, np.ndarray]) -> Listing:
    models = {name: items[name].probes for name, of in run.models.items() if of is None or of[1] == 0}
    student, base = run.model_path(run.student), models["base"]
    probes = memorization.load_probes(run.path(run.config.evaluate.probes), load_config(student))
    chosen = evenly_spread(len(probes), MOST_PROBES)
    tokenizer = load_tokenizer(student)
    prefixes, suffixes = (
        tokenizer.batch_decode([getattr(probes[i], part).tolist() for i in chosen]) for part in ("prefix", "suffix")
    )
    columns: dict[tuple[str, str], Sequence[Any]] = {
        ("Probe", "number"): (chosen + 1).tolist(),
        ("Prefix", "long"): ["\N{HORIZONTAL ELLIPSIS}" * (len(t) > MOST_CHARS) + t[-MOST_CHARS:] for t in prefixes],
        ("Suffix", "long"): list(map(_beginning, suffixes)),
        ("Group", "choice"): [probes[i].group for i in chosen],
        ("Held-out", "choice"): ["yes" if masks[HELD_OUT][i] else "no" for i in chosen],
        ("Extracted by", "choice"): [
            ", ".join(name for name, of in models.items() if of["exact"][i]) or "none" for i in chosen
        ],
        ("Tokens", "number"): base["length"][chosen].tolist(),
    }
    columns |= {(f"Right, {m}", "number"): of["first_mismatch"][chosen].tolist() for m, of in models.items()}
    columns |= {(f"Nats, {m}", "number"): (of["log_prob"] / of["length"])[chosen].tolist() for m, of in models.items()}
    if any(probe.offset is not None for probe in probes):
        columns["Offset", "number"] = [probes[i].offset for i in chosen]
    caption = (
        "Right: suffix tokens that greedy decoding reproduces before its first error; nats: log-probability of a "
        "suffix token. Held-out, and the trained models: of subset 0. evaluate/*/items.npz hold everything."
    )
    return Listing(caption, list(columns), list(zip(*columns.values())), len(probes))


def _documents(run: RunNames, corpus: Corpus) -> Listing:
    left_out = set(read_json(run.workdir / "audit" / run.main / "audit.json", "audit")["left_out"])
    columns = [("Document", "number"), ("Beginning", "long"), ("Tokens", "number"), ("Nats per token", "number")]
    columns += [("Stopped by", "choice"), ("Audit", "choice")]
    rows = [
        [d.id, _beginning(d.text), len(d.tokens), _nll(d), d.stop_reason, "left out" if d.id in left_out else "kept"]
        for d in corpus.take(evenly_spread(len(corpus), MOST_DOCUMENTS))
    ]
    caption = "Unfiltered text of the corpus, cut; it may be wrong, private or offensive."
    return Listing(caption, columns, rows, len(corpus))


def _beginning(text: str) -> str:
    return text[:MOST_CHARS] + "\N{HORIZONTAL ELLIPSIS}" * (len(text) > MOST_CHARS)


def _nll(document) -> float | None:
    return None if document.log_probs is None or not len(document.tokens) else -float(document.log_probs.mean())
