"""What may predict which text helps a student: measured on the untouched student, one arm of a run at a time."""

import dataclasses
import functools
import pathlib

import numpy as np
from jax.sharding import Mesh

from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.packing import pack
from selftrain_jax.data.subset import evenly_spread
from selftrain_jax.data.training_set import student_documents
from selftrain_jax.distributed.mesh import local_mesh
from selftrain_jax.evaluation import proxies, suite
from selftrain_jax.evaluation.score import score
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.fingerprints import model_fingerprint
from selftrain_jax.models.files.tokenizer import encode_texts, load_tokenizer, unknown_tokens
from selftrain_jax.report.study_data import MOST_UNKNOWN
from selftrain_jax.run.names import RunNames
from selftrain_jax.study.settings import ProxySettings


def measure(settings: ProxySettings, run: RunNames, arm: str, mesh: Mesh) -> dict[str, float]:
    """{proxy: value} of an arm of a run, whose audit is done; what cannot be measured is left out."""
    mesh = local_mesh(mesh)
    evaluate, train = run.config.evaluate, run.config.train
    directory = run.model_path(run.student)
    model, params = hf.load_pretrained(directory, mesh=mesh)
    tokenizer = load_tokenizer(directory)
    scorer = functools.partial(score, params, model, mesh=mesh, batch_size=evaluate.batch_size)
    hidden = functools.partial(proxies.mean_hidden, params, model, mesh=mesh, batch_size=evaluate.batch_size)

    def gradient(documents):
        rows = pack(documents, bos_token_id=model.bos_token_id, sequence_length=train.sequence_length)
        few = slice(settings.gradient_rows)
        rows = dataclasses.replace(rows, tokens=rows.tokens[few], segment_ids=rows.segment_ids[few])
        return proxies.gradient(
            params,
            model,
            rows,
            mesh=mesh,
            batch_size=evaluate.batch_size,
            document_boundaries=train.document_boundaries,
        )

    def vectors(documents):
        return hidden([np.array([model.bos_token_id, *ids], np.int32)[: model.max_position] for ids in documents])

    real, questions, pairs, words, _ = suite.read_inputs(evaluate, run.path, model, tokenizer)
    benchmark = _texts(questions, pairs, words, settings.num_documents)
    benchmark_vectors = vectors(encode_texts(tokenizer, benchmark, model.special_ids)) if benchmark else None
    held_out = [text for texts in real.values() for text in texts]
    audited, text = run.workdir / "audit" / arm, run.training_text(arm)
    documents, tokens, retokenized = student_documents(audited, text, directory, run.config.subset.retokenize)
    chosen = evenly_spread(len(tokens), settings.num_documents)
    read, ids = [documents[i] for i in chosen], list(tokens.take(chosen))
    texts = [document.text for document in read]
    nll, counts = proxies.corpus_nll(scorer, model, ids)
    # The last token may be EOS, which some tokenizers take for unknown text, too.
    unread = list(unknown_tokens(tokenizer))
    unknown = sum(int(np.isin(x[:-1], unread).sum()) for x in ids) / max(sum(len(x) for x in ids), 1)
    values = {"nll": nll.sum() / counts.sum(), "unknown_share": unknown}
    values["bits_per_byte"] = proxies.bits_per_byte(nll, texts)
    recorded = [getattr(document, "log_probs", None) for document in read]
    if all(log_probs is not None for log_probs in recorded) and unknown <= MOST_UNKNOWN:
        source_nll = -np.array([x.sum(dtype=np.float64) for x in recorded])
        # Of the student's own text it is 0, and not the rounding by which ranks would tell temperatures apart.
        own = not retokenized and _written_by(text.corpus, model, directory)
        values["excess_nll"] = 0.0 if own else proxies.excess_nll(nll, source_nll, sum(map(len, recorded)))
    if benchmark:
        values["hidden_similarity"] = proxies.hidden_similarity(vectors(ids), benchmark_vectors)
        values["tfidf_similarity"] = proxies.tfidf_similarity(texts, benchmark)
        if settings.sentence_encoder:
            values["sentence_similarity"] = proxies.sentence_similarity(texts, benchmark, settings.sentence_encoder)
    if held_out:
        encoded = encode_texts(tokenizer, held_out, model.special_ids)
        encoded = [np.array([*x, model.eos_token_id], np.int32) for x in encoded]
        values["gradient_alignment"] = proxies.gradient_cosine(gradient(tokens), gradient(encoded))
    return {name: float(value) for name, value in values.items()}


def _written_by(corpus: pathlib.Path, config: DecoderConfig, directory: pathlib.Path) -> bool:
    """Whether the model wrote the corpus, after BOS alone."""
    made = read_corpus(corpus).manifest["provenance"]
    asked = model_fingerprint(directory), [config.bos_token_id]
    return (made.get("model_fingerprint"), made.get("start_ids")) == asked


def _texts(questions: dict[str, list], pairs: dict[str, list], words: dict[str, list], limit: int) -> list[str]:
    """What the capability suites ask and accept as right, at most `limit` texts of each suite, evenly spread."""
    kinds = [
        [f"{row['question']} {row['choices'][row['gold']].strip()}" for row in rows] for rows in questions.values()
    ]
    kinds += [[row["sentence_good"] for row in rows] for rows in pairs.values()]
    kinds += [[row["text"] for row in rows] for rows in words.values()]
    return [rows[i] for rows in kinds for i in evenly_spread(len(rows), limit)]
