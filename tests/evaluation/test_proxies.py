import dataclasses
import functools
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.audit import words
from selftrain_jax.data.packing import PackedRows, pack
from selftrain_jax.distributed.mesh import make_mesh, named_shardings, to_global
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation import proxies
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.models.decoder import Decoder, param_axes
from tests.shapes import SMALL, wandering

CONFIG = dataclasses.replace(SMALL, max_position=29)  # no multiple of the scorer's chunks


@pytest.fixture(scope="module")
def params():
    return wandering(CONFIG)


def on_mesh(sizes, params):
    mesh = make_mesh(MeshConfig(*sizes))
    return mesh, to_global(mesh, params, named_shardings(mesh, param_axes(CONFIG), params))


def table_scorer(log_probs):
    """A student that gives every token its own log-probability, whatever came before it."""

    def scorer(sequences, starts):
        found = [np.asarray(log_probs)[s[start:]] for s, start in zip(sequences, starts, strict=True)]
        return [TokenScores(x, np.ones(len(x), bool), np.zeros(len(x))) for x in found]

    return scorer


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(1)
    return [rng.integers(0, CONFIG.vocab_size, n).astype(np.int32) for n in (5, 1, 0, 29, 30, 75)]


def test_corpus_nll_counts_every_token_once(documents):
    costs = np.random.default_rng(2).exponential(size=CONFIG.vocab_size)
    nll, counts = proxies.corpus_nll(table_scorer(-costs), CONFIG, documents)
    np.testing.assert_allclose(nll, [costs[d].sum() for d in documents], rtol=1e-12)
    assert nll.dtype == np.float64 and counts.tolist() == [5, 1, 0, 29, 30, 75] and counts.dtype == np.int64


def test_corpus_nll_is_given_bos(params, documents):
    nll, _ = proxies.corpus_nll(functools.partial(score, params, CONFIG), CONFIG, documents[:2])
    for found, ids in zip(nll, documents):
        model = Decoder(CONFIG)
        inputs = np.array([[CONFIG.bos_token_id, *ids[:-1]]])
        logits = model.apply({"params": params}, model.apply({"params": params}, inputs), method="logits")
        direct = -jax.nn.log_softmax(logits[0])[np.arange(len(ids)), ids].sum()
        # fp32 log-probs of order 5, from passes of different shapes.
        assert found == pytest.approx(float(direct), abs=1e-4)


def test_no_documents_cost_nothing():
    nll, counts = proxies.corpus_nll(table_scorer([0.0]), CONFIG, [])
    assert nll.shape == counts.shape == (0,)


def test_bits_per_byte_do_not_depend_on_what_is_a_token():
    nats = np.log(2) * np.array([6.0, 2.0])
    assert proxies.bits_per_byte(nats, ["abc", "\u00e9"]) == pytest.approx(8 / 5)
    assert proxies.bits_per_byte([nats.sum() / 4] * 4, ["abc", "\u00e9", ""]) == pytest.approx(8 / 5)
    assert proxies.bits_per_byte([0.0], [""]) == 0


def test_excess_nll_estimates_the_divergence():
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(8), size=2)
    texts = [rng.choice(8, size=20, p=p) for _ in range(500)]
    student, counts = proxies.corpus_nll(table_scorer(np.log(q)), CONFIG, texts)
    source = [-np.log(p)[t].sum() for t in texts]
    found = proxies.excess_nll(student, source, counts.sum())
    ratio = np.log(p / q)
    error = math.sqrt(np.sum(p * ratio**2) - np.sum(p * ratio) ** 2) / math.sqrt(counts.sum())
    assert found == pytest.approx(np.sum(p * ratio), abs=4 * error)
    assert proxies.excess_nll(source, source, counts.sum()) == 0


def test_excess_nll_of_another_tokenization_is_the_same():
    """The same unigram student, reading pairs of source tokens as one of 64 tokens."""
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(8), size=2)
    texts = [rng.choice(8, size=20, p=p) for _ in range(10)]
    source = [-np.log(p)[t].sum() for t in texts]
    single, counts = proxies.corpus_nll(table_scorer(np.log(q)), CONFIG, texts)
    of_pairs = table_scorer(np.log(np.outer(q, q).ravel()))
    pairs, fewer = proxies.corpus_nll(of_pairs, CONFIG, [8 * t[::2] + t[1::2] for t in texts])
    assert fewer.sum() * 2 == counts.sum()
    a, b = (proxies.excess_nll(nll, source, counts.sum()) for nll in (single, pairs))
    assert a == pytest.approx(b, rel=1e-12)


def test_excess_nll_is_left_out_where_nothing_was_recorded():
    assert proxies.excess_nll([1.0], None, 3) is None


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(5)
    lengths = [1, 29, 17, 3, 16, 2, 29, 8, 9, 24, 5]
    return [rng.integers(0, CONFIG.vocab_size, n).astype(np.int32) for n in lengths]


@pytest.fixture(scope="module")
def hidden(params, sequences):
    return proxies.mean_hidden(params, CONFIG, sequences)


def test_mean_hidden_is_the_mean_of_each_sequence_alone(params, sequences, hidden):
    apply = jax.jit(lambda tokens: Decoder(CONFIG).apply({"params": params}, tokens))
    padded = [np.pad(s, (0, 29 - len(s)), constant_values=95)[None] for s in sequences]
    direct = [np.asarray(apply(x), np.float64)[0, : len(s)].mean(0) for x, s in zip(padded, sequences)]
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden, direct, atol=1e-5)  # hidden states of order 1: a few fp32 roundings


@pytest.mark.parametrize("batch_size", [1, 4])
def test_mean_hidden_whatever_the_batch_and_order(params, sequences, hidden, batch_size):
    order = np.random.default_rng(6).permutation(len(sequences))
    found = proxies.mean_hidden(params, CONFIG, [sequences[i] for i in order], batch_size=batch_size)
    np.testing.assert_allclose(found, hidden[order], atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_mean_hidden_on_a_mesh(params, sequences, hidden, sizes):
    mesh, placed = on_mesh(sizes, params)
    found = proxies.mean_hidden(placed, CONFIG, sequences, mesh=mesh, batch_size=5)
    np.testing.assert_allclose(found, hidden, atol=1e-5)


def test_mean_hidden_in_half_precision(params, sequences, hidden):
    found = proxies.mean_hidden(params, CONFIG, sequences, dtype=jnp.bfloat16)
    # bf16 keeps eight bits: hidden states of order 1 move by some 0.01 in each of two layers.
    assert found.dtype == np.float32 and 0 < np.abs(found - hidden).mean() < 0.05


def test_hidden_similarity_is_the_cosine_of_mean_directions(hidden):
    a, b = hidden[:4].astype(np.float64), hidden[4:].astype(np.float64)
    u, v = (np.mean([x / np.sqrt(x @ x) for x in side], axis=0) for side in (a, b))
    assert proxies.hidden_similarity(a, b) == pytest.approx(u @ v / np.sqrt(u @ u * (v @ v)), abs=1e-12)
    assert proxies.hidden_similarity(a, 3 * a) == pytest.approx(1)
    assert proxies.hidden_similarity(a, b) == proxies.hidden_similarity(b, a)
    assert proxies.hidden_similarity([[1, 0]], [[0, 5]]) == 0 and proxies.hidden_similarity([[1, 0]], [[-2, 0]]) == -1


CORPUS = ["The cat sat, the CAT ran.", "A dog ran", "", "numbers 1 2 2"]
BENCHMARK = ["which cat ran?", "the sum of 2 and 2", "a a a"]


def dense_tfidf(corpus, benchmark):
    split = [words(text) for text in [*corpus, *benchmark]]
    vocabulary = sorted(set(sum(split, [])))
    counts = np.array([[text.count(word) for word in vocabulary] for text in split], np.float64)
    weights = counts * (np.log((1 + len(split)) / (1 + (counts > 0).sum(0))) + 1)
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    weights = np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0)
    u, v = weights[: len(corpus)].mean(0), weights[len(corpus) :].mean(0)
    return u @ v / np.sqrt(u @ u * (v @ v))


def test_tfidf_similarity_is_that_of_the_dense_matrix():
    found = proxies.tfidf_similarity(CORPUS, BENCHMARK)
    assert 0 < found < 1 and found == pytest.approx(dense_tfidf(CORPUS, BENCHMARK), abs=1e-12)
    assert proxies.tfidf_similarity(BENCHMARK, CORPUS) == pytest.approx(found, abs=1e-12)


def test_tfidf_similarity_is_scikit_learns():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    matrix = text.TfidfVectorizer(analyzer=words).fit_transform([*CORPUS, *BENCHMARK]).toarray()
    u, v = matrix[: len(CORPUS)].mean(0), matrix[len(CORPUS) :].mean(0)
    expected = u @ v / np.sqrt(u @ u * (v @ v))
    assert proxies.tfidf_similarity(CORPUS, BENCHMARK) == pytest.approx(expected, abs=1e-12)


def test_tfidf_similarity_of_the_same_and_of_foreign_texts():
    assert proxies.tfidf_similarity(CORPUS, CORPUS) == pytest.approx(1)
    assert proxies.tfidf_similarity(["one two"], ["three four"]) == 0
    # A word in every text tells less than a rare one.
    common = proxies.tfidf_similarity(["the red"], ["the blue", "the green"])
    assert common < proxies.tfidf_similarity(["the red"], ["the red", "the green"])


def test_sentence_similarity_compares_mean_directions(monkeypatch, tmp_path):
    class Encoder:
        def __init__(self, name, trust_remote_code):
            assert trust_remote_code is False
            if name != "tiny":
                raise OSError("no such\nmodel")

        def encode(self, texts, show_progress_bar):
            return np.array([[text.count("a"), text.count("b"), 1] for text in texts], np.float32)

    library = types.SimpleNamespace(SentenceTransformer=Encoder, __version__="6.0.0")
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoders").mkdir()
    expected = proxies.hidden_similarity([[2, 1, 1], [0, 0, 1]], [[0, 3, 1]])
    assert proxies.sentence_similarity(["aab", ""], ["bbb"], "tiny") == pytest.approx(expected)
    with pytest.raises(InputError, match="encoder 'other' cannot be loaded .no such model"):
        proxies.sentence_similarity(["a"], ["b"], "other")
    with pytest.raises(InputError, match="encoders/tny, though encoders is a folder here"):
        proxies.sentence_similarity(["a"], ["b"], "encoders/tny")
    library.__version__ = "5.7.0"
    with pytest.raises(InputError, match="5.7.0 runs code that lies in an encoder's folder.*sentence-transformers>=6"):
        proxies.sentence_similarity(["a"], ["b"], "tiny")


def test_sentence_similarity_without_its_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="pip install sentence-transformers"):
        proxies.sentence_similarity(["a"], ["b"], "tiny")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(7)
    texts = rng.integers(0, CONFIG.vocab_size, (16, 7)).astype(
        np.int32
    )  # documents cut at different places by the rows
    packed = pack(texts, bos_token_id=CONFIG.bos_token_id, sequence_length=12)
    assert len(packed.tokens) == 10
    return packed


def direct_gradient(params, rows, document_boundaries=False):
    """Of every row alone, or of every document's part of a row alone, without the loss and the model's masks."""
    parts = []
    for tokens, segments in zip(rows.tokens, rows.segment_ids):
        cuts = np.flatnonzero(np.diff(segments)) + 1 if document_boundaries else []
        parts += [part for part in np.split(tokens, cuts) if len(part) > 1]
    model = Decoder(CONFIG)

    def loss(params, part):
        logits = model.apply({"params": params}, model.apply({"params": params}, part[None, :-1]), method="logits")
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[0]), part[1:, None], axis=1).sum()

    grad = jax.jit(jax.grad(loss))
    total = functools.reduce(
        functools.partial(jax.tree.map, np.add), [jax.device_get(grad(params, part)) for part in parts]
    )
    return jax.tree.map(lambda x: x / sum(len(part) - 1 for part in parts), total)


def assert_same_gradient(found, expected):
    # Entries of up to order 1, each a sum of some hundred fp32 terms.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), jax.device_get(found), jax.device_get(expected)
    )


@pytest.fixture(scope="module")
def expected_gradient(params, rows):
    return direct_gradient(params, rows)


@pytest.mark.parametrize("batch_size", [4, 5])  # the last batch half full, and full
def test_gradient_is_that_of_the_mean_loss_whatever_the_batch(params, rows, expected_gradient, batch_size):
    found = proxies.gradient(params, CONFIG, rows, batch_size=batch_size)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert_same_gradient(found, expected_gradient)


def test_gradient_with_document_boundaries(params, rows, expected_gradient):
    found = proxies.gradient(params, CONFIG, rows, batch_size=4, document_boundaries=True)
    assert_same_gradient(found, direct_gradient(params, rows, document_boundaries=True))
    assert proxies.gradient_cosine(found, expected_gradient) < 0.999


def test_gradient_on_a_mesh(params, rows, expected_gradient):
    mesh, placed = on_mesh((2, 2, 2), params)
    found = proxies.gradient(placed, CONFIG, rows, mesh=mesh, batch_size=3)
    assert_same_gradient(found, expected_gradient)
    assert proxies.gradient_cosine(found, found) == pytest.approx(1, abs=1e-6)


def test_gradient_is_fp32_for_half_precision_weights_and_compute(params, rows, expected_gradient):
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = proxies.gradient(halved, CONFIG, rows, batch_size=5, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    assert proxies.gradient_cosine(found, expected_gradient) > 0.98


@pytest.mark.parametrize("sizes", [None, (2, 2, 2)], ids=str)
def test_batches_of_all_calls_share_one_program(params, rows, sizes):
    mesh, params = on_mesh(sizes, params) if sizes else (None, params)
    _, add = proxies._accumulation(CONFIG, np.dtype("float32"), mesh)
    add.clear_cache()
    proxies.gradient(params, CONFIG, rows, mesh=mesh, batch_size=4)
    shorter = PackedRows(rows.tokens[:7], rows.segment_ids[:7], 0)
    proxies.gradient(jax.tree.map(jnp.negative, params), CONFIG, shorter, mesh=mesh, batch_size=4)
    assert add._cache_size() == 1


def test_gradient_cosine_is_that_of_all_entries(params):
    rng = np.random.default_rng(8)
    a, b = (jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) + 0.3, params) for _ in range(2))
    u, v = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]).astype(np.float64) for t in (a, b))
    expected = u @ v / np.sqrt(u @ u * (v @ v))
    # Some 30,000 fp32 products.
    assert proxies.gradient_cosine(a, b) == pytest.approx(expected, abs=1e-5)
    # Length does not matter, not even where squares leave the range of fp32.
    tiny = jax.tree.map(lambda x: x * np.float32(1e-25), a)
    assert proxies.gradient_cosine(tiny, b) == pytest.approx(expected, abs=1e-5)
    assert proxies.gradient_cosine(a, jax.tree.map(np.negative, a)) == pytest.approx(-1, abs=1e-6)


def rows_of(tokens, segments=None):
    tokens = np.asarray(tokens, np.int32)
    return PackedRows(tokens, np.zeros_like(tokens) if segments is None else np.asarray(segments, np.int32), 0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: proxies.corpus_nll(None, CONFIG, [[1], [96]]), "document 1 holds token ids outside"),
        (lambda p: proxies.corpus_nll(None, CONFIG, [[1.5]]), "document 0 .*integers"),
        (lambda p: proxies.corpus_nll(None, CONFIG, [[[1, 2]]]), r"document 0 of shape \(1, 2\)"),
        (lambda p: proxies.excess_nll([1.0, 2.0], [1.0], 3), "same documents"),
        (lambda p: proxies.excess_nll([1.0], [float("nan")], 3), "must be finite"),
        (lambda p: proxies.excess_nll([1.0], [1.0], 0), "num_source_tokens=0"),
        (lambda p: proxies.mean_hidden(p, CONFIG, [[1], []]), "sequence 1 of shape"),
        (lambda p: proxies.mean_hidden(p, CONFIG, [[1] * 30]), "sequence 0 .*1 to 29 tokens"),
        (lambda p: proxies.mean_hidden(p, CONFIG, [[96]]), "sequence 0 holds token ids outside"),
        (lambda p: proxies.mean_hidden(p, CONFIG, [[1]], batch_size=0), "batch_size=0"),
        (lambda p: proxies.hidden_similarity(np.ones((0, 2)), np.ones((1, 2))), "corpus vectors of shape"),
        (lambda p: proxies.hidden_similarity(np.ones((1, 2)), np.ones((1, 3))), "2 and 3 dimensions"),
        (lambda p: proxies.hidden_similarity([[1, 0]], [[0, 0]]), "benchmark vector has length 0"),
        (lambda p: proxies.hidden_similarity([[1, 0], [-1, 0]], [[1, 0]]), "mean vector .* is 0"),
        (lambda p: proxies.tfidf_similarity(["...", ""], ["word"]), "corpus texts hold no word"),
        (lambda p: proxies.tfidf_similarity(["word"], []), "benchmark texts hold no word"),
        (lambda p: proxies.sentence_similarity(["word"], [], "tiny"), "no benchmark texts"),
        (lambda p: proxies.gradient(p, CONFIG, rows_of(np.zeros((0, 5)))), "no packed rows"),
        (lambda p: proxies.gradient(p, CONFIG, rows_of(np.zeros((1, 31)))), "rows packed for 30 .* context of 29"),
        (lambda p: proxies.gradient(p, CONFIG, rows_of([[1, 96]])), "packed text holds token ids outside"),
        (lambda p: proxies.gradient(p, CONFIG, rows_of([[1, 2]]), batch_size=0), "batch_size=0"),
        (lambda p: proxies.gradient(p, CONFIG, rows_of([[1, 2]], [[0, 1]]), document_boundaries=True), "no target"),
        (lambda p: proxies.gradient_cosine(p, p["head"]), "other shapes"),
        (lambda p: proxies.gradient_cosine({"a": np.ones(2)}, {"a": np.ones(3)}), "other shapes"),
        (lambda p: proxies.gradient_cosine({"a": np.zeros(2)}, {"a": np.ones(2)}), "gradient a has a norm of 0"),
        (lambda p: proxies.gradient_cosine({"a": np.ones(2)}, {"a": np.array([1, np.nan])}), "gradient b .*not finite"),
    ],
)
def test_bad_input_is_named_before_any_device_work(monkeypatch, params, call, message):
    for name in ("_mean_hidden", "_accumulation"):
        monkeypatch.setattr(proxies, name, lambda *_: pytest.fail("device work"))
    with pytest.raises(InputError, match=message):
        call(params)


def test_a_model_that_gives_no_numbers_is_refused(params):
    broken = {
        **params,
        "final_norm": {**params["final_norm"], "scale": np.full_like(params["final_norm"]["scale"], np.nan)},
    }
    with pytest.raises(InputError, match="hidden states of sequence 0 are not finite"):
        proxies.mean_hidden(broken, CONFIG, [[1, 2, 3]])
