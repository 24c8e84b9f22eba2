"""What the report says that is no measurement: of the text that a run trains on, and of the software."""

import functools
import importlib.metadata
import pathlib
import platform
import sys
from typing import Any, Iterable, Mapping

import numpy as np

import selftrain_jax
from selftrain_jax import __version__
from selftrain_jax.core.files import file_fingerprint, read_json
from selftrain_jax.data.corpus import Corpus
from selftrain_jax.data.packing import batch_indices
from selftrain_jax.data.training_set import read_subset
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import read_manifest
from selftrain_jax.training.settings import TrainConfig

NUM_SAMPLES_SHOWN = 6
WRITER = "report written by"


def drawn(pipeline: RunNames, arm: str) -> tuple[int, int]:
    """(documents, different ones) of the subset of `arm` that repeats most."""
    names = [f"subset/{arm}-{k}" for k in range(pipeline.config.subset.num_subsets)]
    subsets = [read_manifest(pipeline.workdir, name)["result"] for name in names]
    most = max(subsets, key=lambda subset: subset["num_documents"] / subset["num_distinct"])
    return most["num_documents"], most["num_distinct"]


def audit(workdir, arm: str) -> dict[str, Any]:
    found = read_json(workdir / "audit" / arm / "audit.json", "audit")
    shown = ("ngram", "threshold", "num_documents", "num_flagged", "num_left_out", "benchmarks", "nll_histogram")
    return {name: found[name] for name in shown}


def origin(corpus: Corpus) -> dict[str, Any]:
    """The imported source of a given corpus, or the model that another run sampled; of several corpora put together,
    that of the newest, and how many these are."""
    shown = ("source", "model", "accumulated")
    return {name: value for name, value in corpus.manifest["provenance"].items() if name in shown}


def size(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.manifest
    return {
        "num_documents": manifest["num_documents"],
        "num_tokens": manifest["num_tokens"],
        "mean_length": manifest["length"]["mean"],
        "stop_reasons": manifest["stop_reasons"],
        **({"mean_nll": manifest["nll"]["mean"]} if manifest["nll"] else {}),
    }


def tokens(stage: str, result: Mapping[str, Any], train: TrainConfig, workdir: pathlib.Path) -> int | None:
    """Tokens that a finished stage of a run in `workdir` sampled, drew, or trained on: of a training, targets, since
    the rest of a budget that fills no row or batch is none, nor the first token of a document that is kept apart; None
    of stages of another kind."""
    kind, _, model = stage.partition("/")
    if kind == "train":
        steps = result["step"]
        beginnings = _beginnings(steps, train, workdir / "subset" / model) if train.document_boundaries else 0
        return steps * train.batch_size * train.sequence_length - beginnings
    return result.get("num_tokens") if kind in ("sample", "sampled", "corpora", "subset") else None


def _beginnings(steps: int, train: TrainConfig, subset: pathlib.Path) -> int:
    """Places in the rows of so many steps where the next token begins another document."""
    segments, number = read_subset(subset).segment_ids, int(subset.name.rpartition("-")[2])
    of_rows = np.array([np.count_nonzero(np.diff(row)) for row in segments])  # row by row: they lie on disk
    order = {"num_rows": len(segments), "batch_size": train.batch_size, "seed": train.seed + number}
    return sum(int(of_rows[batch_indices(step, **order)].sum()) for step in range(steps))


def samples(corpus: Corpus) -> list[dict[str, Any]]:
    def nll(document) -> float | None:
        return None if document.log_probs is None else -float(document.log_probs.mean())

    shown = corpus[:NUM_SAMPLES_SHOWN]
    return [{"id": d.id, "text": d.text, "nll": nll(d), "stop_reason": d.stop_reason} for d in shown]


def software() -> dict[str, str]:
    """What this process works with: versions, and the devices of its job."""
    import jax

    names = "jax flax optax orbax-checkpoint transformers tensorflow-datasets numpy".split()
    found = {"selftrain_jax": f"{__version__} ({_source()})", **{name: _version(name) for name in names}}
    devices = jax.devices()
    return found | {"python": platform.python_version(), "devices": f"{len(devices)} x {devices[0].device_kind}"}


@functools.cache
def _source() -> str:
    """A hash of this package's code, by which two checkouts of one version differ."""
    return file_fingerprint(*sorted(pathlib.Path(selftrain_jax.__file__).parent.rglob("*.py")))[:8]


def _version(name: str) -> str:
    """Of the package as it is imported, which need not be the one that is installed."""
    module = sys.modules.get(name.replace("orbax-", "orbax.").replace("-", "_"))
    return str(getattr(module, "__version__", None) or importlib.metadata.version(name))


def versions(manifests: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What finished stages were done with, and by whom the report is written; several values where they differ.
    Earlier versions did not note it."""
    noted = [of for manifest in manifests for of in manifest.get("software") or [{}]]
    now = software()
    found = {name: ", ".join(dict.fromkeys(of.get(name, "not noted") for of in noted)) for name in now}
    return found | {WRITER: ", ".join(f"{name} {now[name]}" for name in ("selftrain_jax", "python", "numpy"))}


def device_hours(manifests: Iterable[Mapping[str, Any]]) -> float | None:
    """Time of stages, each since its last start, by the devices that it had; None where one did not note them."""
    manifests = list(manifests)
    if not all(manifest.get("software") for manifest in manifests):
        return None
    devices = [int(manifest["software"][-1]["devices"].partition(" ")[0]) for manifest in manifests]
    return sum(count * manifest["seconds"] for count, manifest in zip(devices, manifests)) / 3600
