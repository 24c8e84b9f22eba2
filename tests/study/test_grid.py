import pytest

from selftrain_jax.evaluation.statistics import clopper_pearson
from selftrain_jax.report.metric import CAPABILITY, LEFT_PROBES, LEFT_TOKENS, Metric
from selftrain_jax.study.grid import grid
from selftrain_jax.study.settings import Condition

TEMPERATURES = {"S t=0.5": 0.5, "S t=1": 1.0, "real": None, "O t=1": 1.0}
RELATIONS = {"S t=0.5": "self", "S t=1": "self", "real": "real text", "O t=1": "other family"}
CONDITIONS = {f"lr {rate:g}": Condition(f"lr {rate:g}", 100, rate) for rate in (1e-3, 1e-2)}


def rows(conditions=CONDITIONS):
    """Two seeds, two trainings each: capability rises by the temperature (real text: by 0.1) in seed 0, by 0.02 more in
    seed 1; 40 of 50 probes are lost in each."""
    results, memory = [], []
    for arm, temperature in TEMPERATURES.items():
        for condition in conditions:
            for seed in (0, 1):
                place = {"student": "S", "arm": arm, "relation": RELATIONS[arm], "condition": condition, "seed": seed}
                gain = 0.1 * (temperature or 1) + 0.02 * seed
                for subset, extra in enumerate((-0.01, 0.01)):
                    at = {**place, "subset": subset}
                    results.append({**at, "metric": CAPABILITY, "before": 0.5, "after": 0.5 + gain + extra})
                    results.append({**at, "metric": Metric("nll", "prose"), "before": 2.0, "after": 2.1})
                    results.append({**at, "metric": Metric("capability", "sums"), "before": 0.5, "after": 0.6})
                    memory.append({**at, "extracted": 50, "lost": 40, "token_share_after": 0.98 + 0.02 * seed})
    return results, memory


def test_own_text_by_temperature_and_learning_rate_stands_beside_real_text():
    found = grid(*rows(), TEMPERATURES, CONDITIONS)
    cells = {(row["metric"], row["temperature"], row["learning_rate"]): row for row in found}
    metrics = {CAPABILITY, Metric("nll", "prose"), LEFT_PROBES, LEFT_TOKENS}
    assert set(cells) == {(m, t, rate) for m in metrics for t in (0.5, 1.0, None) for rate in (1e-3, 1e-2)}
    assert {row["num_replicates"] for row in found} == {2} and {row["tokens"] for row in found} == {100}
    assert cells[CAPABILITY, 0.5, 1e-3]["value"] == pytest.approx(0.06)
    assert cells[CAPABILITY, None, 1e-2]["value"] == pytest.approx(0.11)
    assert cells[Metric("nll", "prose"), 1.0, 1e-3]["value"] == pytest.approx(0.1)


def test_the_interval_of_what_is_left_has_a_width_and_stays_among_shares():
    """Seeds that are alike tell nothing by their spread: the 100 probes of both do."""
    found = {row["metric"]: row for row in grid(*rows(), TEMPERATURES, CONDITIONS)}
    left, exact = found[LEFT_PROBES], clopper_pearson(80, 100)
    assert left["value"] == pytest.approx(0.2)
    assert (left["low"], left["high"]) == pytest.approx((1 - exact[1], 1 - exact[0]))
    assert found[LEFT_TOKENS]["value"] == pytest.approx(0.99) and found[LEFT_TOKENS]["high"] == 1.0


def test_there_is_no_map_of_one_temperature_or_one_learning_rate():
    one = dict(list(CONDITIONS.items())[:1])
    assert grid(*rows(one), TEMPERATURES, one) == []
    assert grid(*rows(), TEMPERATURES | {"S t=0.5": 1.0}, CONDITIONS) == []
