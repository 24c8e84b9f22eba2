import numpy as np
import pytest
import scipy.stats

from selftrain_jax.report.metric import CAPABILITY
from selftrain_jax.study.replicates import contrast, detectable, estimate, tails
from tests.study.made import FAMILY, LINEAGE, SELF, rows_of


def test_a_contrast_compares_no_students_with_each_other():
    rows = rows_of(CAPABILITY, {("a", SELF): [0.6, 0.7], ("b", LINEAGE): [0.5, 0.5]})
    rows += [row | {"student": "T"} for row in rows_of(CAPABILITY, {("a", LINEAGE): [0.1, 0.1]})]
    assert contrast(rows, SELF, (LINEAGE,)) == pytest.approx({0: 0.1, 1: 0.2})
    assert contrast(rows, SELF, (FAMILY,)) == {}


def test_tails_are_those_of_a_t_test():
    values = [0.3, 0.1, 0.5]
    above, below = tails(values, 0.05)
    assert above == pytest.approx(scipy.stats.ttest_1samp(values, 0.05, alternative="greater").pvalue)
    assert above + below == pytest.approx(1)


@pytest.mark.parametrize("n, effect, half_width", [(3, 3.264, 2.484), (5, 1.682, 1.242), (10, 0.996, 0.715)])
def test_four_of_five_studies_find_what_is_detectable(n, effect, half_width):
    """The half-width is found by 61, 56 and 52 % of them."""
    values = np.arange(n) / np.arange(n).std(ddof=1)
    assert detectable(values) == pytest.approx(effect, abs=0.001)
    found = estimate(values)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half_width, abs=0.001)
    noise = np.random.default_rng(0).normal(size=(20_000, n))
    for mean, power in ((effect, 0.8), (half_width, {3: 0.61, 5: 0.56, 10: 0.52}[n])):
        p_values = scipy.stats.ttest_1samp(noise + mean, 0, axis=1).pvalue
        assert np.mean(p_values < 0.05) == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize("values", [[0.2], [0.125] * 3, [0.0] * 3, [0.1, 0.3 - 0.2]])
def test_replicates_that_do_not_differ_have_no_interval_no_power_and_no_certainty(values):
    """A suite of eight items of which every seed gains one."""
    found = estimate(values)
    assert found["value"] == pytest.approx(values[0]) and (found["low"], found["high"]) == (None, None)
    assert detectable(values) is None and tails(values, 0.05) == (1, 1)
