"""Planted minus twin, against counting by hand and simulated coverage."""

import numpy as np
import pytest

from selftrain_jax.evaluation.attributed import planted_minus_twin
from selftrain_jax.evaluation.exposure import exposure


def of(exact, log_prob, **more):
    return {
        "exact": np.array(exact, bool),
        "log_prob": np.array(log_prob, float),
        "length": np.full(len(exact), 4),
    } | more


REPEATS = np.array([0, 0, 0, 4, 4, 16, 16])
KINDS = np.array(["words"] * 7)
PLANTED = of([0, 0, 0, 1, 0, 1, 1], [-30, -28, -32, -2, -20, -0.1, -0.2])
TWIN = of([0, 0, 0, 0, 0, 0, 1], [-30, -29, -32, -31, -27, -28, -1.0])


def rows(planted=PLANTED, twin=TWIN, **more):
    found = list(planted_minus_twin(planted, twin, REPEATS, KINDS, **more))
    return {(row["measure"], row["repeats"]): row for row in found}


def test_each_group_is_compared_with_its_own_sequences_in_the_twin():
    found = rows()
    shares = {n: tuple(found["extraction", n][k] for k in ("value", "twin", "difference", "n")) for n in (0, 4, 16)}
    assert shares == {0: (0, 0, 0, 3), 4: (0.5, 0, 0.5, 2), 16: (1, 0.5, 0.5, 2)}
    # 100 samples hold a suffix of probability e^-2, not one of e^-20.
    assert found["discoverable", 4]["value"] == 0.5 and found["discoverable", 4]["twin"] == 0
    assert found["log_prob", 16]["difference"] == pytest.approx((-0.3 / 4 - -29 / 4) / 2)
    for row in found.values():
        if row["low"] is not None:
            assert row["low"] <= row["difference"] <= row["high"]


def test_exposure_is_among_the_never_planted_of_the_same_kind():
    found, never = rows(), PLANTED["log_prob"][:3]
    assert found["exposure", 4]["value"] == np.mean([exposure(x, never) for x in PLANTED["log_prob"][3:5]])
    assert found["exposure", 16]["difference"] == pytest.approx(2 - (2 + 2) / 2) and ("exposure", 0) not in found
    kinds = np.array(["words"] * 3 + ["passages"] * 4)
    other = [row["measure"] for row in planted_minus_twin(PLANTED, TWIN, REPEATS, kinds)]
    assert "exposure" not in other and "membership" not in other


def test_membership_tells_inserted_from_never_inserted_better_than_the_twin_does():
    found = rows(attacks={"zlib": (PLANTED["log_prob"], TWIN["log_prob"])})
    assert found["membership", 4]["value"] == 1 and found["membership", 4]["twin"] == pytest.approx(4 / 6)
    assert found["membership zlib", 4]["difference"] == pytest.approx(1 - 4 / 6)
    assert ("membership", 0) not in found


def test_what_an_attack_leaves_out_does_not_count():
    """As ReCaLL does with the non-members that stand before the others."""
    scores = np.array([np.nan, 1, 2, 3, 4, 5, 1.5])
    found = rows(attacks={"recall": (scores, -scores), "none": (np.where(REPEATS, scores, np.nan), scores)})
    row = found["membership recall", 16]
    assert (row["value"], row["twin"], row["n"]) == (0.75, 0.25, 4)
    assert row["low"] < row["difference"] == 0.5 < row["high"] and ("membership none", 16) not in found


def test_windows_of_one_text_are_one_witness():
    alone = rows()["extraction", 0]
    planted = PLANTED | {"cluster": np.array([1, 1, 1, 2, 3, 4, 5])}
    assert rows(planted)["extraction", 0]["high"] > alone["high"]


@pytest.mark.large
def test_the_interval_of_group_0_holds_zero():
    """Two models that know nothing of a sequence: their difference is 0 in 95 % of simulations or more."""
    rng, missed = np.random.default_rng(0), dict.fromkeys(("extraction", "exposure", "log_prob"), 0)
    for _ in range(500):
        text = rng.normal(-30, 5, 64)
        chances = rng.beta(0.2, 2, 64)
        made = [of(rng.random(64) < chances, text + rng.normal(0, 2, 64)) for _ in range(2)]
        repeats = np.repeat([0, 1], 32)
        for row in planted_minus_twin(*made, repeats, np.array(["words"] * 64)):
            if row["measure"] in missed and row["repeats"] == 1:
                missed[row["measure"]] += not row["low"] <= 0 <= row["high"]
    assert max(missed.values()) <= 0.07 * 500, missed
