"""What might tell, before any training, which corpus will help a student: likelihood, similarity, gradients.

The first two kinds are the intrinsic proxies that the paper finds wanting (arXiv 2605.31126). None of them is a
verdict; `statistics.rank_correlation` with the measured utility is."""

import collections
import functools
import math
import os
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Float64, Int, Int64
from numpy.typing import ArrayLike

from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.data.audit import words
from selftrain_jax.data.packing import PackedRows
from selftrain_jax.distributed.mesh import padded_rows, to_host, with_mesh
from selftrain_jax.evaluation.batches import check_batch_size, in_batches, padded_batch, rounded_length
from selftrain_jax.evaluation.likelihood import Scorer, rolling_windows, summed_log_probs
from selftrain_jax.models.checks import check_finite, check_params
from selftrain_jax.models.config import DecoderConfig, check_token_ids
from selftrain_jax.models.decoder import Decoder, Params, param_shapes, param_shardings
from selftrain_jax.models.files.hub import check_hub_name
from selftrain_jax.training.step import accumulated, next_token_loss


def corpus_nll(
    scorer: Scorer, config: DecoderConfig, documents: Sequence[Int[np.ndarray, " t"]]
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(summed negative log-likelihood in nats, number of tokens) of every document given BOS.

    The paper's likelihood proxy is the quotient of the two sums: nats per token. Documents longer than the context are
    cut by `likelihood.rolling_windows`; one without tokens costs 0 nats.

    Args:
      scorer, config: the student.
      documents: ids in the student's tokenization, without BOS.

    Raises:
      InputError: a document that is not a vector of ids of the vocabulary.
    """
    documents = [np.asarray(document) for document in documents]
    windows, starts, owners = [], [], []
    for number, ids in enumerate(documents):
        if ids.ndim != 1:
            raise InputError(f"document {number} of shape {ids.shape} must be a vector of token ids")
        if not ids.size:
            continue
        check_token_ids(f"document {number}", ids, config)
        for window, start in rolling_windows(ids, config.bos_token_id, config.max_position):
            windows.append(window)
            starts.append(start)
            owners.append(number)
    nll = np.zeros(len(documents))
    if windows:
        np.add.at(nll, owners, -summed_log_probs(scorer(windows, starts)))
    return nll, np.array([ids.size for ids in documents], np.int64)


def bits_per_byte(nll: ArrayLike, texts: Sequence[str]) -> float:
    """Bits of summed `nll` (nats) of `texts` per byte of their UTF-8: what a model needs for a text, whatever its
    tokenizer calls a token. Texts without a byte cost nothing."""
    return float(np.sum(nll) / np.log(2) / max(sum(len(text.encode()) for text in texts), 1))


def excess_nll(student_nll: ArrayLike, source_nll: ArrayLike | None, num_source_tokens: int) -> float | None:
    """(student's nats - source's nats) / source tokens, for the same texts; None where `source_nll` is None.

    For text that the source wrote at temperature 1, with no token forbidden (no top-k, no top-p, EOS free), this
    estimates KL(source || student) in nats per source token. A student with another tokenizer may be compared too,
    since nats of a whole text do not depend on how it is cut, up to what either model gives to other tokenizations of
    that text; its documents must then end where the source's do, with EOS or without. For any other text it is a
    difference of two cross-entropies, not a divergence, and may be negative.

    Args:
      student_nll: nats per document [n], as of `corpus_nll`, or their sum.
      source_nll: the same under the source, as recorded when the text was sampled.
      num_source_tokens: of all documents, in the source's tokenization.
    """
    if source_nll is None:
        return None
    student, source = np.asarray(student_nll, np.float64), np.asarray(source_nll, np.float64)
    if student.shape != source.shape:
        raise InputError(
            f"student_nll has shape {student.shape} and source_nll {source.shape}: give both for the same documents"
        )
    if not (np.isfinite(student).all() and np.isfinite(source).all()):
        raise InputError("student_nll and source_nll must be finite: leave out documents that were not measured")
    if num_source_tokens < 1:
        raise InputError(f"num_source_tokens={num_source_tokens} must be at least 1")
    return float((student - source).sum() / num_source_tokens)


def mean_hidden(
    params: Params,
    config: DecoderConfig,
    sequences: Sequence[Int[np.ndarray, " t"]],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    dtype=jnp.float32,
) -> Float32[np.ndarray, "n D"]:
    """The mean over positions of the final hidden states (after the final norm) of every sequence.

    Args:
      sequences: int arrays of 1 to `config.max_position` tokens, BOS included where it is wanted.
      mesh: devices over which the rows of a batch are spread.
      batch_size: rows per pass.
      dtype: compute dtype of the forward pass; the mean is taken in fp32 always.

    Raises:
      InputError: a bad sequence or parameters of another model, before any device work; a model that gives no finite
        numbers.
    """
    sequences = [np.asarray(sequence) for sequence in sequences]
    check_batch_size(batch_size)
    for i, sequence in enumerate(sequences):
        if sequence.ndim != 1 or not 1 <= len(sequence) <= config.max_position:
            raise InputError(
                f"sequence {i} of shape {sequence.shape} must be a vector of 1 to {config.max_position} tokens, the "
                "model's context"
            )
        check_token_ids(f"sequence {i}", sequence, config)
    check_params(params, config)

    model, rows = Decoder(config, dtype=dtype), padded_rows(batch_size, mesh)
    lengths = [len(sequence) for sequence in sequences]

    def compute(chosen):
        width = min(rounded_length(lengths[chosen[-1]]), config.max_position)
        given = [sequences[i] for i in chosen], [lengths[i] for i in chosen]
        return _mean_hidden(model, params, *padded_batch(mesh, rows, width, *given))

    def finish(i, mean):
        check_finite(f"hidden states of sequence {i}", mean)
        return mean

    found = in_batches(compute, lengths, rows, dtype=dtype, finish=finish)
    return np.stack(found) if found else np.zeros((0, config.hidden_size), np.float32)


@functools.partial(jax.jit, static_argnames="model")
def _mean_hidden(model, params, tokens, lengths):
    hidden = model.apply({"params": params}, tokens).astype(jnp.float32)
    inside = jnp.arange(tokens.shape[1]) < lengths[:, None]
    return jnp.where(inside[..., None], hidden, 0).sum(axis=1) / lengths[:, None]


def hidden_similarity(corpus_vectors: Float[np.ndarray, "n D"], benchmark_vectors: Float[np.ndarray, "m D"]) -> float:
    """cos(a, b) in [-1, 1], with a the mean of the corpus's vectors, each scaled to length 1, and b that of the
    benchmark's.

    Nothing is centred: hidden states of a language model share a large common direction, so that values lie near 1 and
    only their order means something.
    """
    return _cosine(_mean_unit("corpus", corpus_vectors), _mean_unit("benchmark", benchmark_vectors))


def _mean_unit(name: str, vectors: ArrayLike) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or not len(vectors):
        raise InputError(f"{name} vectors of shape {vectors.shape} must be [n, D] with n at least 1")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InputError(f"a {name} vector has length 0 or is not finite, and so no direction: leave it out")
    return (vectors / norms).mean(axis=0)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise InputError(
            f"corpus and benchmark have vectors of {a.size} and {b.size} dimensions: use one encoder for both"
        )
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    if norm == 0:
        raise InputError("the mean vector of the corpus or of the benchmark is 0, so it has no direction")
    return float(np.clip(a @ b / norm, -1, 1))


def tfidf_similarity(corpus_texts: Sequence[str], benchmark_texts: Sequence[str]) -> float:
    """Cosine, in [0, 1], of the mean TF-IDF vector of the corpus and that of the benchmark.

    Words are those of `data.audit.words`. A text's entry for a word is its count times ln((1 + n) / (1 + df)) + 1, with
    n texts in both sets together, df of which hold the word; each text is then scaled to length 1 (scikit-learn's
    `TfidfVectorizer` with its default weighting). A text without words is a zero vector and counts in the mean.
    """
    vocabulary: dict[str, int] = {}
    sides = []
    for name, texts in (("corpus", corpus_texts), ("benchmark", benchmark_texts)):
        counted = []
        for text in texts:
            counts = collections.Counter(vocabulary.setdefault(word, len(vocabulary)) for word in words(text))
            counted.append((np.fromiter(counts, np.int64, len(counts)), np.array(list(counts.values()), np.float64)))
        if not any(ids.size for ids, _ in counted):
            raise InputError(f"the {name} texts hold no word to compare")
        sides.append(counted)
    found_in = np.bincount(np.concatenate([ids for side in sides for ids, _ in side]), minlength=len(vocabulary))
    idf = np.log((1 + sum(map(len, sides))) / (1 + found_in)) + 1
    means = []
    for side in sides:
        total = np.zeros(len(vocabulary))
        for ids, counts in side:
            if ids.size:
                weights = counts * idf[ids]
                total[ids] += weights / np.linalg.norm(weights)
        means.append(total / len(side))
    return _cosine(*means)


def sentence_similarity(corpus_texts: Sequence[str], benchmark_texts: Sequence[str], encoder: str) -> float:
    """Cosine of the mean unit sentence embeddings of both sets, as `hidden_similarity` (Reimers & Gurevych 2019).

    A text longer than the encoder's own limit is judged by its beginning.

    Args:
      encoder: a model of the `sentence_transformers` library: a directory, or a name on the Hugging Face hub. No code
        of a model repository is run.

    Raises:
      InputError: the library is not installed, the encoder cannot be loaded, or a set is empty.
    """
    for name, texts in (("corpus", corpus_texts), ("benchmark", benchmark_texts)):
        if not len(texts):
            raise InputError(f"there are no {name} texts to compare")
    sentence_transformers = sentence_library()
    if not os.path.isdir(encoder):
        check_hub_name(f"sentence encoder not found: {encoder}", encoder)
    try:
        model = sentence_transformers.SentenceTransformer(encoder, trust_remote_code=False)
    except Exception as e:  # the library, the hub and PyTorch each raise their own
        raise InputError(f"sentence encoder {encoder!r} cannot be loaded ({one_line(e)[:300]})") from None
    return hidden_similarity(
        *(np.asarray(model.encode(list(texts), show_progress_bar=False)) for texts in (corpus_texts, benchmark_texts))
    )


def sentence_library():
    """The `sentence_transformers` library; `InputError` without it, or where it would run code of a local folder."""
    try:
        import sentence_transformers
    except ImportError as e:
        raise InputError(
            f"sentence_similarity needs sentence_transformers ({one_line(e)}): pip install sentence-transformers, or "
            "leave this proxy out"
        ) from None
    if int((version := sentence_transformers.__version__).split(".")[0]) < 6:
        raise InputError(
            f"sentence_transformers {version} runs code that lies in an encoder's folder: pip install "
            "'sentence-transformers>=6', or leave this proxy out"
        )
    return sentence_transformers


def gradient(
    params: Params,
    config: DecoderConfig,
    rows: PackedRows,
    *,
    mesh: Mesh | None = None,
    batch_size: int = 8,
    document_boundaries: bool = False,
    dtype=jnp.float32,
) -> Params:
    """The gradient of the mean next-token loss (nats) over all targets of `rows`, an fp32 tree in the structure of
    `params`.

    The loss is that of training (`training.step.next_token_loss`); every row counts, whatever the batch size.

    Args:
      mesh: devices over which the rows of a batch are spread; the gradient lies on them as `param_shardings` says.
      batch_size: rows per pass.
      document_boundaries: keep packed documents apart, as the training setting of that name.
      dtype: compute dtype; gradients are accumulated in fp32 always.

    Raises:
      InputError: no rows or no target, rows longer than the context, ids outside the vocabulary: before device work.
    """
    check_batch_size(batch_size)
    num_rows, length = rows.tokens.shape
    if not num_rows:
        raise InputError("there are no packed rows to take a gradient over: pack more text, or shorter rows")
    if length - 1 > config.max_position:
        raise InputError(
            f"rows packed for {length - 1} tokens exceed the model's context of {config.max_position}: pack shorter "
            "ones"
        )
    check_token_ids("packed text", rows.tokens, config)
    segments = rows.segment_ids if document_boundaries else np.zeros_like(rows.tokens)
    num_targets = int((segments[:, 1:] == segments[:, :-1]).sum())
    if not num_targets:
        raise InputError("rows hold no target: no document in them has two tokens")

    batch_size = padded_rows(batch_size, mesh)
    missing = -num_rows % batch_size
    batches = {"tokens": np.pad(rows.tokens, [(0, missing), (0, 0)])}
    if document_boundaries or missing:
        # In a row of padding every token is a document of its own, and none a target.
        alone = np.broadcast_to(np.arange(length, dtype=segments.dtype), (missing, length))
        batches["segment_ids"] = np.concatenate([segments, alone])
    zeros, add = _accumulation(config, jnp.dtype(dtype), mesh)
    total = zeros()

    def compute(chosen):
        nonlocal total
        batch = {name: padded_batch(mesh, batch_size, length, x[chosen])[0] for name, x in batches.items()}
        with with_mesh(mesh):
            total = add(total, params, batch)

    in_batches(compute, [length] * (num_rows + missing), batch_size, dtype=dtype)
    return _divided(total, np.float32(num_targets))


@functools.lru_cache
def _accumulation(config: DecoderConfig, dtype: np.dtype, mesh: Mesh | None):
    """A jitted zero gradient, and the jitted `(total, params, batch) -> total + gradient of the summed loss`."""
    model = Decoder(config, dtype=dtype, remat=True)
    placement = None if mesh is None else param_shardings(config, mesh)

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), param_shapes(config))

    def add(total, params, batch):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        _, _, grads = accumulated(next_token_loss(model), 1)(params, batch)
        return jax.tree.map(jnp.add, total, grads)

    return jax.jit(zeros, out_shardings=placement), jax.jit(add, donate_argnums=0, out_shardings=placement)


@functools.partial(jax.jit, donate_argnums=0)
def _divided(tree, by):
    return jax.tree.map(lambda x: x / by, tree)


def gradient_cosine(a: Any, b: Any) -> float:
    """Cosine, in [-1, 1], of two gradients: trees of one structure, all their entries as one vector."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (a, b)]
    if shapes[0] != shapes[1]:
        raise InputError("gradients can be compared only if they are of the same parameters: these have other shapes")
    products = [float(to_host(x)) for x in _products(a, b)]
    for name, square in zip("ab", products[1:]):
        if not (math.isfinite(square) and square > 0):
            raise InputError(f"gradient {name} has a norm of 0 or one that is not finite, and so no direction")
    return max(-1.0, min(1.0, products[0] / math.sqrt(products[1] * products[2])))


@jax.jit
def _products(a, b) -> tuple[Array, Array, Array]:
    """a b, a a and b b, after scaling each to a largest entry of 1: squares of small entries would vanish in fp32."""

    def scaled(tree):
        largest = jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree)]).max().astype(jnp.float32)
        return jax.tree.map(lambda x: x.astype(jnp.float32) / jnp.where(largest == 0, 1, largest), tree)

    def dot(x, y):
        return sum(jnp.sum(p * q) for p, q in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))

    a, b = scaled(a), scaled(b)
    return dot(a, b), dot(a, a), dot(b, b)
