import functools
import itertools
import json

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import free_running, memorization
from selftrain_jax.evaluation import score as score_module
from selftrain_jax.evaluation.memorization import (
    Probe,
    extract,
    extraction_strength,
    load_probes,
    offset_bins,
    probe_columns,
)
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.sampling.continuation import continue_prompts
from tests.evaluation.overfitted import overfitted

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_position=24,
    pattern=(Layer(Rotary(0.5)),),
)
PREFIX, LENGTH = 8, 24
STEPS = 17  # of training: some sequences are known by then, some in part


@pytest.fixture(scope="module")
def sequences():
    """The first half of these is trained on."""
    return np.random.default_rng(0).integers(1, CONFIG.vocab_size, size=(32, LENGTH), dtype=np.int32)


@pytest.fixture(scope="module")
def params(sequences):
    """A model stopped while it knows some of its 16 training sequences by heart and others in part."""
    return overfitted(CONFIG, sequences[:16], STEPS)


@pytest.fixture(scope="module")
def probes(sequences):
    """Trained sequences, the same with one wrong token in the suffix, and sequences never seen."""
    wrong = sequences[:16].copy()
    at = PREFIX + np.arange(16)
    wrong[np.arange(16), at] = wrong[np.arange(16), at] % (CONFIG.vocab_size - 1) + 1
    return [Probe(s[:PREFIX], s[PREFIX:]) for s in [*sequences[:16], *wrong, *sequences[16:]]]


@pytest.mark.parametrize("bos", [None, CONFIG.bos_token_id])
def test_extraction_equals_free_running_greedy_decoding(params, probes, bos):
    if bos is not None:
        probes = [Probe(p.prefix[1:], p.suffix) for p in probes]  # BOS takes the place of the first token
    found = extract(functools.partial(score, params, CONFIG, batch_size=64), probes, bos_token_id=bos)
    head = np.zeros((len(probes), 0) if bos is None else (len(probes), 1), np.int32)
    prompts = np.concatenate([head, [p.prefix for p in probes]], axis=1).astype(np.int32)
    generated = np.array(continue_prompts(params, CONFIG, prompts, LENGTH - PREFIX, stop_at_eos=False))
    agrees = generated == [p.suffix for p in probes]
    first_mismatch = np.where(agrees.all(axis=1), LENGTH - PREFIX, np.argmin(agrees, axis=1))
    clear = ~found.ambiguous()  # of a trained model: where a near tie is, the passes may write either token
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.exact[clear], agrees.all(axis=1)[clear])
    np.testing.assert_array_equal(found.first_mismatch[clear], first_mismatch[clear])
    if bos is None:  # a mixture on which a wrong rule would show: all right, right in part, wrong at once
        assert 2 <= found.exact.sum() <= 14 and not found.exact[16:].any()
        assert ((first_mismatch > 0) & ~found.exact).sum() > 8 and (first_mismatch == 0).sum() > 8
        # Behind a miss the two passes condition on different tokens, so their shares of right tokens differ.
        assert (found.token_share != agrees.mean(axis=1)).sum() > 4


def scripted(*scores):
    """A scorer that answers with these (log-probs, hits, margins), and the list of what it was asked."""
    asked = []

    def scorer(sequences, starts):
        asked.extend((list(s), start) for s, start in zip(sequences, starts, strict=True))
        return [TokenScores(*(np.array(x, t) for x, t in zip(s, (np.float32, bool, np.float32)))) for s in scores]

    return scorer, asked


def test_outcomes_by_hand():
    scorer, asked = scripted(
        ([-0.5, -0.25], [True, True], [3.0, 2.0]),
        ([-1.0, -4.0, -2.0], [True, False, True], [1.0, 0.5, 0.125]),
        ([-2.0, -0.5], [False, True], [0.25, 0.125]),
    )
    probes = [
        Probe(np.array([1, 2]), np.array([3, 4])),
        Probe(np.array([1]), np.array([2, 3, 4])),
        Probe(np.array([5, 6, 7]), np.array([8, 9])),
    ]
    found = extract(scorer, probes, bos_token_id=0)
    assert asked == [([0, 1, 2, 3, 4], 3), ([0, 1, 2, 3, 4], 2), ([0, 5, 6, 7, 8, 9], 4)]
    assert found.exact.tolist() == [True, False, False]
    assert found.first_mismatch.tolist() == [2, 1, 0]
    assert found.token_share == pytest.approx([1, 2 / 3, 1 / 2])
    assert found.log_prob.tolist() == [-0.75, -7.0, -2.5]
    # Decided at the first miss: what comes after it no longer counts.
    assert found.least_margin.tolist() == [2.0, 0.5, 0.25]
    assert found.ambiguous(0.3).tolist() == [False, False, True] and not found.ambiguous().any()
    # Given all up to the last miss, the rest follows.
    assert found.strength == pytest.approx([1, 1 / 3, 1 / 2])
    assert found.length.tolist() == [2, 3, 2]
    assert found.extracted(1).tolist() == [True, True, False] and found.extracted(2).tolist() == [True, False, False]
    for bad in (0, 3):
        with pytest.raises(InputError, match=f"suffix length {bad} must lie between 1 and 2"):
            found.extracted(bad)


def test_every_shorter_suffix_is_free(params, probes):
    scorer = functools.partial(score, params, CONFIG, batch_size=64)
    whole = extract(scorer, probes)
    for k in (1, 5, 12, LENGTH - PREFIX):
        cut = extract(scorer, [Probe(p.prefix, p.suffix[:k]) for p in probes])
        np.testing.assert_array_equal(whole.extracted(k), cut.exact)
    rates = [whole.extracted(k).mean() for k in range(1, LENGTH - PREFIX + 1)]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


@pytest.mark.parametrize("bos", [None, CONFIG.bos_token_id])
def test_extraction_strength_is_the_shortest_prefix_that_greedy_decoding_completes(params, sequences, bos):
    chosen = sequences[:20, :16]
    scorer = functools.partial(score, params, CONFIG, batch_size=64)
    found = extraction_strength(scorer, chosen, bos_token_id=bos)
    cuts = range(0 if bos is not None else 1, 16)
    probes = [Probe(text[:k], text[k:]) for text in chosen for k in cuts]
    written = free_running.continue_greedily(params, CONFIG, probes, bos_token_id=bos, batch_size=512)
    completed = np.array([np.array_equal(p.suffix, w) for p, w in zip(probes, written)]).reshape(20, -1)
    shortest = np.where(completed.any(axis=1), cuts[0] + completed.argmax(axis=1), 16)
    clear = ~extract(scorer, probes, bos_token_id=bos).ambiguous().reshape(20, -1).any(axis=1)
    assert clear.mean() > 0.7
    np.testing.assert_allclose(found[clear], (1 - shortest / 16)[clear])
    assert len(set(found.tolist())) > 4


def test_probes_are_binned_by_their_distance_from_the_start():
    bins = offset_bins(np.array([0, 63, 64, 511, 512, 9999, -1]), (64, 512))
    found = {offsets: np.flatnonzero(inside).tolist() for offsets, inside in bins.items()}
    assert found == {(0, 63): [0, 1], (64, 511): [2, 3], (512, None): [4, 5]}
    with pytest.raises(InputError, match="offset edges"):
        offset_bins(np.array([0]), (64, 64))


def test_without_bos_the_prefix_comes_first():
    scorer, asked = scripted(([-1.0], [True], [1.0]))
    extract(scorer, [Probe(np.array([4, 5]), np.array([6]))])
    assert asked == [([4, 5, 6], 2)]


class Words:
    """Decodes ids as words of so many tokens; "-" is a token without a word."""

    def __init__(self, tokens_per_word=1):
        self._size = tokens_per_word

    def batch_decode(self, sequences, skip_special_tokens, clean_up_tokenization_spaces):
        n = self._size
        words = [["".join(f"x{i}" for i in ids[at : at + n]) for at in range(0, len(ids), n)] for ids in sequences]
        return [" ".join(text) for text in words]


class Cut(Words):
    """Words of two tokens, of which even ids are the first."""

    def batch_decode(self, sequences, **_):
        return ["".join(" " * (i % 2 == 0) + f"x{i}" for i in ids) for ids in sequences]


def held_out(probes, texts, n=8, tokenizer=Words()):
    return memorization.held_out(probes, texts, tokenizer, (n,))[n]


def test_held_out_counts_words_whatever_the_tokenizer():
    """One text of 8 equal words under one token, and under two tokens, a word: 8 tokens of the second are 4 words."""
    one, two = (np.repeat(np.arange(100, 130), k) for k in (1, 2))
    for size, ids in ((1, one), (2, two)):
        probe = Probe(ids[: 8 * size], ids[8 * size : 16 * size])
        for shared, clean in ((4, True), (7, True), (8, False)):
            document = np.concatenate([ids[: shared * size], np.full(4 * size, 7)])
            assert held_out([probe], [document], 8, Words(size)).tolist() == [clean]


def test_a_probe_that_is_cut_within_words_is_no_held_out_part_of_its_own_text():
    text = np.arange(100, 140)
    for begin, size in itertools.product((0, 1), range(2, 30)):
        window = text[begin : begin + size]
        assert held_out([Probe(window[:1], window[1:])], [text], 8, Cut()).tolist() == [False]
        if size < 16:  # fewer than 8 whole words
            assert held_out([Probe(window[:1], window[1:])], [window[:-1]], 8, Cut()).tolist() == [True]


def test_probes_without_words_are_compared_whole_by_their_tokens():
    class Nothing(Words):
        def batch_decode(self, sequences, **_):
            return ["\ufffd" for _ in sequences]

    probe = Probe(np.arange(20), np.arange(20, 24))
    for document, clean in ((np.arange(-0, 30), False), (np.arange(23), True)):
        assert held_out([probe], [document], 8, Nothing()).tolist() == [clean]


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("num_texts, at_once", [(0, 5), (1, 5), (12, 5), (12, 256)])
def test_held_out_equals_comparing_all_ngrams(monkeypatch, n, num_texts, at_once):
    monkeypatch.setattr(memorization, "_AT_ONCE", at_once)
    rng = np.random.default_rng(n)
    letters = {1: 2500, 3: 12, 8: 2}[n]  # few enough that chance matches are neither rare nor certain
    texts = [rng.integers(0, letters, size) for size in rng.integers(0, 30, num_texts)]
    probes = [Probe(rng.integers(0, letters, a), rng.integers(0, letters, b)) for a, b in rng.integers(1, 9, (200, 2))]

    def seen(probe):
        whole = [*probe.prefix, *probe.suffix]
        m = min(n, len(whole))
        windows = {tuple(whole[i : i + m]) for i in range(len(whole) - m + 1)}
        return any(tuple(t[i : i + m]) in windows for t in texts for i in range(len(t) - m + 1))

    expected = [not seen(probe) for probe in probes]
    assert held_out(probes, iter(texts), n).tolist() == expected
    assert all(expected) if num_texts == 0 else any(expected)
    assert num_texts != 12 or 20 < sum(expected) < 180


def test_the_weakest_filter_asks_for_the_whole_suffix():
    parts = [(np.arange(1, 6), np.arange(6, 10)), (np.arange(1, 6), np.arange(6, 9)), (np.array([9]), np.array([4]))]
    probes = [Probe(*part) for part in parts]
    text = np.array([1, 2, 3, 4, 5, 6, 7, 8, 0, 9])
    assert held_out(probes, [text], n=None).tolist() == [True, False, False]
    assert held_out(probes, [text], n=8).tolist() == [False, False, True]
    assert held_out(probes, [np.array([7, 8, 9]), np.array([6, 7])], n=None).tolist() == [True, True, True]


def test_ngrams_reach_across_the_cut_but_not_across_texts():
    probe = Probe(np.arange(1, 6), np.arange(6, 11))
    assert not held_out([probe], [np.array([40, 3, 4, 5, 6, 7, 8, 41])], n=6).any()
    assert held_out([probe], [np.array([40, 3, 4, 5]), np.array([6, 7, 8, 41])], n=6).all()


@pytest.mark.parametrize("text, clean", [([7, 5, 0, 6], False), ([5, 6, 0], True), ([5, 0], True), ([], True)])
def test_a_probe_shorter_than_n_is_compared_whole(text, clean):
    assert held_out([Probe(np.array([5]), np.array([0, 6]))], [np.array(text, np.int32)], n=8).tolist() == [clean]


def test_leading_zeros_count_in_ngram_hashes():
    """Token 0 is a token: [0, 0, 5] and [0, 5] and [5] are different n-grams."""
    hashes = [memorization.ngram_hashes(np.array(t), len(t))[0] for t in ([5], [0, 5], [0, 0, 5], [5, 0], [0], [0, 0])]
    assert len(set(hashes)) == len(hashes)


def test_probes_load_with_their_group(tmp_path):
    path = tmp_path / "probes.jsonl"
    rows = [
        {"prefix": [1, 0], "suffix": [63], "group": "repeats=4", "offset": 7},
        {"prefix": [2], "suffix": [3, 4], "note": "x"},
        {"prefix": [2], "suffix": [3], "group": None},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = load_probes(path, CONFIG)
    assert (first.prefix.tolist(), first.suffix.tolist(), first.group) == ([1, 0], [63], "repeats=4")
    assert (second.prefix.tolist(), second.suffix.tolist(), second.group) == ([2], [3, 4], "all")
    assert third.group == "all"
    assert (first.offset, second.offset) == (7, None)
    assert "cluster" not in probe_columns([first, second, third])
    assert first.prefix.dtype == second.suffix.dtype == np.int32


def test_probes_of_one_document_are_a_cluster_unless_they_say_another(tmp_path):
    path = tmp_path / "probes.jsonl"
    more = [{"document": 1}, {"document": 2}, {"document": 1}, {}, {"document": 1, "cluster": "b"}, {}]
    path.write_text("\n".join(json.dumps({"prefix": [1], "suffix": [i], **row}) for i, row in enumerate(more)))
    assert probe_columns(load_probes(path, CONFIG))["cluster"].tolist() == [1, 2, 1, 4, 5, 6]


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_longest_probe_leaves_its_last_token_out_of_the_context(tmp_path, add_bos):
    path = tmp_path / "probes.jsonl"
    longest = CONFIG.max_position + 1 - add_bos
    path.write_text(json.dumps({"prefix": [1] * 4, "suffix": [2] * (longest - 4)}))
    assert len(load_probes(path, CONFIG, add_bos=add_bos)) == 1
    path.write_text(json.dumps({"prefix": [1] * 4, "suffix": [2] * (longest - 3)}))
    with pytest.raises(InputError, match=f"probe 1: {longest + 1} tokens .*context of {CONFIG.max_position}"):
        load_probes(path, CONFIG, add_bos=add_bos)


@pytest.mark.parametrize(
    "second, message",
    [
        ('{"prefix": [1]', "line 2: not valid JSON"),
        ('{"prefix": [1]}', r"line 2: missing field\(s\) suffix"),
        ("[1, 2]", "line 2: missing"),
        ('{"prefix": [], "suffix": [1]}', "probe 2: prefix must be a list"),
        ('{"prefix": [1], "suffix": []}', "probe 2: suffix must be a list"),
        ('{"prefix": 1, "suffix": [1]}', "probe 2: prefix must be a list"),
        ('{"prefix": "12", "suffix": [1]}', "probe 2: prefix must be a list"),
        ('{"prefix": [1], "suffix": ["1"]}', "probe 2: suffix must be a list"),
        ('{"prefix": [1], "suffix": [1.5]}', "probe 2: suffix must be a list"),
        ('{"prefix": [1], "suffix": [true]}', "probe 2: suffix must be a list"),
        ('{"prefix": [[1], [2]], "suffix": [1]}', "probe 2: prefix must be a list"),
        ('{"prefix": [1], "suffix": [64]}', r"probe 2: suffix token ids .*\[0, 64\)"),
        ('{"prefix": [-1], "suffix": [1]}', "probe 2: prefix token ids"),
        ('{"prefix": [1], "suffix": [18446744073709551616]}', "probe 2: suffix token ids"),
        ('{"prefix": [1], "suffix": [2], "offset": -1}', "probe 2: offset=-1"),
        ('{"prefix": [1], "suffix": [2], "offset": "5"}', "probe 2: offset='5'"),
        ('{"prefix": [1], "suffix": [2], "group": ""}', "probe 2: group=''"),
        ('{"prefix": [1], "suffix": [2], "group": ["a"]}', r"probe 2: group=\['a'\]"),
        ('{"prefix": [1], "suffix": [2], "cluster": 0.5}', "item 2: cluster=0.5"),
        ('{"prefix": [1], "suffix": [2], "group": "a\\u0000"}', r"probe 2: group='a\\x00'"),
    ],
)
def test_a_faulty_probe_is_named(tmp_path, second, message):
    path = tmp_path / "probes.jsonl"
    path.write_text(f'{{"prefix": [1], "suffix": [2]}}\n{second}\n')
    with pytest.raises(InputError, match=f"{path}, {message}"):
        load_probes(path, CONFIG)


def test_a_group_cannot_be_called_as_all_probes_are(tmp_path):
    path = tmp_path / "probes.jsonl"
    rows = [{"prefix": [1], "suffix": [2], "group": group} for group in ("all", None, "poems")]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=f"{path}: group 'all' stands for all probes"):
        load_probes(path, CONFIG)
    path.write_text("\n".join(map(json.dumps, rows[:2])))
    assert [probe.group for probe in load_probes(path, CONFIG)] == ["all"] * 2


def test_a_file_without_probes_is_an_error(tmp_path):
    (tmp_path / "probes.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no probes"):
        load_probes(tmp_path / "probes.jsonl", CONFIG)
    with pytest.raises(InputError, match="probe file not found"):
        load_probes(tmp_path / "nowhere.jsonl", CONFIG)


@pytest.mark.parametrize(
    "prefix, suffix, message",
    [
        ([1, 2], [], "sequence 1: cannot score from token 2 of 2"),
        ([], [3], "sequence 1: cannot score from token 0 of 1"),
        ([1] * 20, [2] * 6, "sequence 1 has 26 tokens.*context of 24"),
        ([1], [64], "sequence 1 holds token ids outside.*64"),
        ([-1], [3], "sequence 1 holds token ids outside"),
        ([1], [2**40], "sequence 1 holds token ids outside"),
    ],
)
def test_bad_probes_raise_before_any_device_work(monkeypatch, params, prefix, suffix, message):
    monkeypatch.setattr(score_module, "score_batch", lambda *_, **__: pytest.fail("device work"))
    monkeypatch.setattr(free_running.continuation, "continue_prompts", lambda *_, **__: pytest.fail("device work"))
    probes = [Probe(np.array([1]), np.array([2])), Probe(np.array(prefix, np.int64), np.array(suffix, np.int64))]
    with pytest.raises(InputError, match=message):
        extract(functools.partial(score, params, CONFIG), probes)
    with pytest.raises(InputError, match=message):
        free_running.continue_greedily(params, CONFIG, probes)


def test_no_probes_are_no_extraction(params):
    with pytest.raises(InputError, match="no probes"):
        extract(functools.partial(score, params, CONFIG), [])
