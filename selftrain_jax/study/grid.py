"""The map: what a student's own text does by temperature and learning rate, beside real text."""

from typing import Any, Callable, Mapping, Sequence

from selftrain_jax.report.metric import CAPABILITY, DRIFT, LEFT_PROBES, LEFT_TOKENS, Metric, Row, grouped
from selftrain_jax.report.study_data import CONTROLS, RELATIONS
from selftrain_jax.study.replicates import PAIR, Rows, change, estimate, exact_share_lost, seed_means
from selftrain_jax.study.settings import Condition


def grid(
    results: Sequence[Row],
    memory: Sequence[Row],
    temperatures: Mapping[str, float | None],
    conditions: Mapping[str, Condition],
) -> Rows:
    """Utility, change of likelihood, drift and held-out memory left, over seeds.

    Args:
      results, memory: as in `StudyData`.
      temperatures: arm -> that of sampling; None of what no model wrote.
      conditions: by name.

    Returns:
      Rows {"student", "tokens", "learning_rate", "temperature", "metric", "value", "low", "high", "num_replicates"} of
      the arms "self" and real text (temperature None); none below two temperatures or two learning rates. Values of
      `LEFT_PROBES` and `LEFT_TOKENS` are after training, of the others after minus before. The interval of
      `LEFT_PROBES` is the wider, to each side, of Student's t over seeds and of `exact_share_lost`.
    """
    rates = {condition.learning_rate for condition in conditions.values()}
    if len(set(temperatures.values()) - {None}) < 2 or len(rates) < 2:
        return []
    changed = [row for row in results if row["metric"] in (CAPABILITY, DRIFT) or row["metric"].kind == "nll"]
    cells = [(metric, rows, change) for (metric,), rows in grouped(changed, "metric").items()]
    cells += [(LEFT_PROBES, memory, _left), (LEFT_TOKENS, memory, lambda row: row["token_share_after"])]
    found = []
    for metric, rows, value in cells:
        for (student, arm, relation, condition), group in grouped(rows, *PAIR).items():
            if relation in (RELATIONS[0], CONTROLS[0]):
                place = {"student": student, "tokens": conditions[condition].num_tokens}
                place |= {"learning_rate": conditions[condition].learning_rate, "temperature": temperatures[arm]}
                found.append({**place, "metric": metric, **_estimate(metric, group, value)})
    return found


def _left(row: Row) -> float:
    return 1 - row["lost"] / row["extracted"]


def _estimate(metric: Metric, rows: Sequence[Row], value: Callable[[Row], float]) -> dict[str, Any]:
    found = estimate(seed_means(rows, value))
    bounds = [bound for bound in (found["low"], found["high"]) if bound is not None]
    if metric == LEFT_PROBES and found["num_replicates"] > 1:  # seeds that lose all alike have no spread
        counts = [{"seed": row["seed"], "before": 1, "after": _left(row), "n": row["extracted"]} for row in rows]
        bounds += [1 - bound for bound in exact_share_lost(counts)]
    if metric in (LEFT_PROBES, LEFT_TOKENS) and bounds:
        found["low"], found["high"] = max(min(bounds), 0.0), min(max(bounds), 1.0)
    return found
