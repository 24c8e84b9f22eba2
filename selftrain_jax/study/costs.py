"""What the units of a study that are done took."""

from typing import Any, Collection, Iterator

from selftrain_jax.run import facts, stages
from selftrain_jax.study.expand import Study
from selftrain_jax.study.model import Unit


def done_stages(study: Study, done: Collection[str]) -> Iterator[tuple[Unit, str, dict[str, Any]]]:
    """(unit, stage, its manifest) of the units in `done`."""
    for unit in study.units:
        for name in sorted(stage.name for stage in unit.stages) if unit.name in done else ():
            yield unit, name, stages.read_manifest(unit.workdir, name)


def costs(study: Study, done: Collection[str]) -> list[dict[str, Any]]:
    """Rows {"stage", "count", "seconds", "tokens"} by kind of stage; seconds since the last start of each."""
    totals: dict[str, dict[str, Any]] = {}
    for unit, name, manifest in done_stages(study, done):
        kind = _kind(name)
        row = totals.setdefault(kind, {"stage": kind, "count": 0, "seconds": 0.0, "tokens": 0})
        row["count"] += 1
        row["seconds"] += manifest["seconds"]
        train = (unit.config or study.config).train  # with the seed of the run
        row["tokens"] += facts.tokens(name, manifest["result"], train, unit.workdir) or 0
    return [row | {"tokens": row["tokens"] or None} for row in totals.values()]


def _kind(stage: str) -> str:
    """The kind of work that a stage does, by its name."""
    kind = stage.partition("/")[0]
    if kind == "lab":
        return "world" if stage.endswith("/world") else "pre-train"
    return "sample" if kind in ("corpora", "sampled") else kind
