"""Membership scores and exposure by their definitions, from scripted log-probs and from a real scorer."""

import functools
import math
import zlib

import numpy as np
import pytest
from scipy import stats

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.exposure import _pulls, canary_exposures, exposure, group_exposures, mean_exposure
from selftrain_jax.evaluation.membership import membership_results, membership_scores
from selftrain_jax.evaluation.memorization import Probe
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.evaluation.statistics import weighted_mean
from selftrain_jax.report.metric import KINDS
from tests.shapes import ONE_LAYER, initial

CONFIG = ONE_LAYER


@pytest.fixture(scope="module")
def params():
    params = initial(CONFIG)
    params["head"]["kernel"] *= 6
    return params


def scripted(log_probs, means=None, variances=None):
    """A scorer that answers with these, however it is asked."""

    def scorer(sequences, starts, moments=False):
        assert [len(s) - t for s, t in zip(sequences, starts)] == [len(x) for x in log_probs]
        rows = zip(log_probs, means or log_probs, variances or log_probs)
        return [
            TokenScores(np.float32(x), None, None, *((np.float32(m), np.float32(v)) if moments else ()))
            for x, m, v in rows
        ]

    return scorer


def test_scores_by_hand():
    scorer = scripted([[-1.0, -4.0, -2.0, -3.0]], [[-2.0, -2.0, -2.0, -2.0]], [[1.0, 4.0, 1.0, 0.25]])
    reference = scripted([[-2.0, -2.0, -2.0, -2.0]])
    text = "some text, some text, some text"
    found = membership_scores(scorer, [np.arange(5)], texts=[text], reference=reference, share=0.5)
    assert found["loss"] == pytest.approx([-2.5])
    assert found["zlib"] == pytest.approx([-2.5 / len(zlib.compress(text.encode()))])
    assert found["min_k"] == pytest.approx([-3.5])  # the two least likely tokens
    assert found["min_k_plus"] == pytest.approx([-1.5])  # normalized: 1, -1, 0, -2
    assert found["reference"] == pytest.approx([-0.5])


def test_dc_pdd_by_hand():
    """Token 7 stands twice and counts once, where the model gives it 0.5; the divergence of token 9 is cut off."""
    counts = np.zeros(10, int)
    counts[7] = 90  # of 90 tokens and 10 ids: f = 91/100, and 1/100 for all others
    log_probs = [math.log(0.05), math.log(0.9), math.log(1e-4)]
    found = membership_scores(scripted([log_probs]), [np.array([0, 7, 7, 8])], counts=counts)
    expected = (min(0.05 * -math.log(0.91), 0.01) + 1e-4 * math.log(100)) / 2
    assert found["dc_pdd"] == pytest.approx([expected]) and 0.05 * -math.log(0.91) < 0.01
    assert membership_scores(scripted([[-0.5]]), [np.array([0, 9])], counts=counts)["dc_pdd"] == pytest.approx([0.01])


@pytest.mark.parametrize("bos", [None, 1])
def test_recall_scores_the_same_tokens_behind_non_members(params, bos):
    """Each sequence alone behind the joined shots, by the scorer, token by token."""
    scorer = functools.partial(score, params, CONFIG, batch_size=4)
    sequences = [np.random.default_rng(i).integers(2, 64, 4) for i in range(6)]
    found = membership_scores(scorer, sequences, shots=[4, 5], bos_token_id=bos)["recall"]
    assert np.isnan(found[4:]).all()
    head, shots = [] if bos is None else [bos], np.concatenate(sequences[4:])
    for i, sequence in enumerate(sequences[:4]):
        plain, given = (np.concatenate([head, *parts]).astype(int) for parts in ((sequence,), (shots, sequence)))
        count = len(plain) - 1
        a, b = (s.log_probs.mean() for s in scorer([plain, given], [1, len(given) - count]))
        assert found[i] == pytest.approx(b / a, rel=1e-4)


@pytest.mark.parametrize("share, count", [(0.01, 1), (0.3, 3), (0.35, 3), (1.0, 10)])
def test_min_k_takes_the_floor_but_never_nothing(share, count):
    log_probs = [-float(i) for i in range(10)]
    found = membership_scores(scripted([log_probs]), [np.arange(11)], share=share)
    assert found["min_k"] == pytest.approx([np.mean(sorted(log_probs)[:count])])


def test_min_k_plus_is_finite_where_the_model_is_certain():
    found = membership_scores(scripted([[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]), [np.arange(3)])
    assert found["min_k_plus"].tolist() == [0.0]


def test_results_find_planted_members():
    rng = np.random.default_rng(0)
    members = np.arange(600) < 300
    values = rng.normal(size=600) + 3 * members
    found = membership_results({"loss": values, "noise": rng.normal(size=600)}, members)
    expected = stats.mannwhitneyu(values[:300], values[300:]).statistic / 300**2
    assert found["loss"].auc[0] == pytest.approx(expected) and found["loss"].auc[1] > 0.95
    assert found["loss"].tpr_at_1_percent[0] == np.mean(values[:300] > np.sort(values[300:])[-4])
    assert found["noise"].auc[1] < 0.5 < found["noise"].auc[2] and found["noise"].tpr_at_01_percent[0] < 0.05


@pytest.mark.parametrize(
    "arguments, message",
    [({"share": 0.0}, "share=0.0"), ({"share": 1.5}, "share=1.5"), ({"texts": ["a", "b"]}, "2 texts for 1 sequences")],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        membership_scores(scripted([[-1.0]]), [np.arange(2)], **arguments)


@pytest.mark.parametrize("own, others", [(np.nan, [-1.0]), (-1.0, [-2.0, np.nan])])
def test_exposure_of_what_is_no_number_is_refused(own, others):
    with pytest.raises(InputError, match="not numbers"):
        exposure(own, others)


def test_exposure_by_hand():
    assert exposure(-1.0, [-2.0, -3.0, -4.0]) == 2.0  # the best of four
    assert exposure(-5.0, [-2.0, -3.0, -4.0]) == 0.0
    assert exposure(-2.5, [-2.0, -3.0, -4.0]) == 1.0
    assert exposure(-2.0, [-2.0, -3.0, -4.0]) == 1.0  # a tie counts against the canary
    with pytest.raises(InputError, match="at least one alternative"):
        exposure(-1.0, [])


def test_sampled_exposure_estimates_that_in_the_whole_space(params):
    """Secrets of two tokens over eight: all 64 can be ranked, and sampling must agree with the full ranking."""
    alphabet = np.arange(10, 18)
    prefix = np.array([1, 2, 3])
    scorer = functools.partial(score, params, CONFIG, batch_size=64)
    space = [Probe(prefix, np.array([a, b])) for a in alphabet for b in alphabet]
    totals = np.array([s.log_probs.sum() for s in scorer([np.append(p.prefix, p.suffix) for p in space], [3] * 64)])
    order = np.argsort(-totals)
    canaries = [space[i] for i in (order[0], order[7], order[31], order[63])]
    found = canary_exposures(scorer, canaries, alphabet, num_alternatives=400)
    assert found[0] == pytest.approx(math.log2(401))  # nothing is more likely: the ceiling
    # Rank r of 64 is exceeded by a share (r - 1) / 63 of the alternatives; 400 of them have a spread of up to 0.025.
    shares = 2.0**-found
    np.testing.assert_allclose(shares[1:], [7 / 63, 31 / 63, 1], atol=0.075)
    again = canary_exposures(scorer, canaries[:2], alphabet, num_alternatives=400)
    assert again.tolist() == found[:2].tolist()


def test_exposure_among_a_group_is_that_of_each_canary_among_its_equals():
    rng = np.random.default_rng(0)
    log_probs, lengths = np.round(rng.normal(size=60), 1), rng.choice([4, 8, 9], 60)  # with ties
    members = (rng.random(60) < 0.4) | (lengths == 9)
    found = group_exposures(log_probs, lengths, members)
    for i in range(60):
        rivals = log_probs[~members & (lengths == lengths[i])]
        expected = exposure(log_probs[i], rivals) if members[i] and rivals.size else np.nan
        assert found[i] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found[lengths == 9]).all()
    with pytest.raises(InputError, match="not numbers"):
        group_exposures([np.nan, 1.0], [1, 1], [True, False])


def test_exposure_of_what_was_never_planted_is_that_of_chance():
    """1 / ln 2 bits in the mean, whatever the spread of the log-probabilities."""
    log_probs = np.random.default_rng(1).normal(-50, 9, 4000)
    bits = group_exposures(log_probs, np.full(4000, 8), np.arange(4000) < 2000)
    assert np.nanmean(bits) == pytest.approx(1 / math.log(2), abs=4 * 1.44 / math.sqrt(2000))


def test_the_part_of_the_non_members_in_an_interval_is_their_jackknife():
    """Each non-member left out in turn, by `group_exposures` of the others; in clusters, the sum of their pulls."""
    rng = np.random.default_rng(2)
    log_probs, lengths = np.round(rng.normal(size=50), 1), rng.choice([4, 8], 50)
    members = rng.random(50) < 0.5
    chosen = members & (rng.random(50) < 0.7)
    variance = 0.0
    for length in (4, 8):
        rivals = np.flatnonzero(~members & (lengths == length))
        without = []
        for i in rivals:
            kept = np.arange(50) != i
            bits = group_exposures(log_probs[kept], lengths[kept], members[kept])
            without.append(bits[(chosen & (lengths == length))[kept]].sum() / chosen.sum())
        variance += (len(rivals) - 1) / len(rivals) * np.sum((without - np.mean(without)) ** 2)
    assert (_pulls(log_probs, lengths, members, chosen) ** 2).sum() == pytest.approx(variance)
    mean, low, high, n = mean_exposure(log_probs, lengths, members, chosen)
    bits = group_exposures(log_probs, lengths, members)[chosen]
    most = np.log2(1 + max(np.sum(~members & (lengths == length)) for length in (4, 8)))
    own = weighted_mean(bits, None, (0, most))
    half = stats.t.ppf(0.975, (~members).sum() - 1) * math.sqrt(variance)
    assert (mean, n) == (pytest.approx(bits.mean()), chosen.sum())
    assert high == pytest.approx(mean + math.hypot(own[2] - mean, half)) and low < own[1]
    same = mean_exposure(log_probs, lengths, members, chosen, before=log_probs)
    assert same[0] == 0 and same[1] < 0 < same[2]
    shared = np.arange(50) // 2
    assert mean_exposure(log_probs, lengths, members, chosen, shared)[0] == mean
    # Eight canaries that stand out among two times four rivals: no interval goes beyond log2 5 bits.
    kinds, planted = np.tile([0, 1], 8), np.arange(16) > 7
    assert max(mean_exposure(np.arange(16.0), kinds, planted, planted)[:3]) == pytest.approx(np.log2(5))
    assert mean_exposure([0.0, 1.0], [4, 4], [False, True], [False, True]) == (1.0, 0.0, 1.0, 1)  # one says nothing
    with pytest.raises(InputError, match="of no canary"):
        mean_exposure([0.0, 1.0], [4, 5], [False, True], [False, True])


@pytest.mark.large
@pytest.mark.parametrize("canaries, others", [(8, 8), (64, 64), (500, 100), (100, 900)])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_intervals_of_exposure_cover_the_truth(capsys, canaries, others, shift):
    rng = np.random.default_rng(0)
    members = np.arange(canaries + others) < canaries

    def one():
        log_probs = rng.normal(size=len(members)) + shift * members
        return mean_exposure(log_probs, np.full(len(members), 8), members, members)

    truth = np.mean([one()[0] for _ in range(1000)])
    covered = np.mean([low <= truth <= high for _, low, high, _ in (one() for _ in range(500))])
    with capsys.disabled():
        print(f"\n{canaries} among {others}, {shift} deviations: {covered:.1%}", end=" ")
    assert covered > 0.82


def test_exposure_by_chance_is_less_among_few():
    """Members that fall anywhere among four that never were: 0.94 bits, of which the report's words speak."""
    members = np.arange(9) < 5
    bits = group_exposures([0, 2, 4, 6, 8, 1, 3, 5, 7], np.full(9, 8), members)
    assert bits[members].mean() == pytest.approx(0.94, abs=0.001)
    assert "1.4 in the mean among many, 0.9 among four" in KINDS["exposure"].explanation


def test_bad_canaries_are_named(params):
    scorer = functools.partial(score, params, CONFIG)
    with pytest.raises(InputError, match="alphabet holds 1"):
        canary_exposures(scorer, [Probe(np.array([1]), np.array([2]))], [5])
    with pytest.raises(InputError, match="num_alternatives=0"):
        canary_exposures(scorer, [Probe(np.array([1]), np.array([2]))], [5, 6], num_alternatives=0)
