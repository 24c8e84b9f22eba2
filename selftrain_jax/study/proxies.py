"""What may predict which text helps a student: measured on the untouched student, for every arm of a run."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from selftrain_jax.stages import Stage, read_manifest

if TYPE_CHECKING:
    from selftrain_jax.study.plan import Run
    from selftrain_jax.study.settings import StudyConfig

KINDS = {
    "nll": "intrinsic",
    "hidden_similarity": "intrinsic",
    "tfidf_similarity": "intrinsic",
    "sentence_similarity": "intrinsic",
    "excess_nll": "relational",
    "gradient_alignment": "relational",
}
HELPFUL_SIGN = {"nll": -1, "excess_nll": -1}
"""The direction in which a proxy would speak for a text, where it is not "more"."""


def stage(name: str, config: "StudyConfig", run: "Run", mesh: Callable[[], Any]) -> Stage:
    """The stage that measures the proxies; its result is {arm: {proxy: value}}."""
    settings = dataclasses.asdict(config.proxies) | {"arms": [arm.key for arm in run.arms]}

    def externals():
        return {arm: read_manifest(run.pipeline.workdir, f"audit/{arm}")["fingerprint"] for arm in run.pipeline.arms}

    return Stage(name, settings, (), lambda directory: measure(config, run, mesh()), externals)


def measure(config: "StudyConfig", run: "Run", mesh: Any) -> dict[str, dict[str, float]]:
    """{arm: {proxy: value}} of a run whose audits are done; what cannot be measured for an arm is left out."""
    from tqdm import tqdm

    from selftrain_jax import parallel
    from selftrain_jax.data.packing import pack
    from selftrain_jax.data.training_set import student_documents
    from selftrain_jax.evaluation import proxies, suite
    from selftrain_jax.evaluation.score import score
    from selftrain_jax.models import hf
    from selftrain_jax.models.tokenizer import encode_texts, load_tokenizer

    pipeline, settings, mesh = run.pipeline, config.proxies, parallel.own_mesh(mesh)
    evaluate = pipeline.config.evaluate
    directory = pipeline.model_path(pipeline.student)
    model, params = hf.load_pretrained(directory, mesh=mesh)
    tokenizer = load_tokenizer(directory)
    scorer = functools.partial(score, params, model, mesh=mesh, batch_size=evaluate.batch_size)
    hidden = functools.partial(proxies.mean_hidden, params, model, mesh=mesh, batch_size=evaluate.batch_size)
    length = pipeline.config.train.sequence_length

    def rows(documents):
        packed = pack(documents, bos_token_id=model.bos_token_id, sequence_length=length)
        few = slice(settings.gradient_rows)
        return dataclasses.replace(packed, tokens=packed.tokens[few], segment_ids=packed.segment_ids[few])

    def vectors(documents):
        return hidden([np.array([model.bos_token_id, *ids], np.int32)[: model.max_position] for ids in documents])

    real, questions, pairs, _ = suite.read_inputs(evaluate, pipeline.path, model)
    benchmark = _texts(questions, pairs, settings.num_documents)
    benchmark_vectors = vectors(encode_texts(tokenizer, benchmark)) if benchmark else None
    held_out = [text for texts in real.values() for text in texts]
    real_gradient = None
    if held_out:
        encoded = [np.array([*ids, model.eos_token_id], np.int32) for ids in encode_texts(tokenizer, held_out)]
        real_gradient = proxies.gradient(params, model, rows(encoded), mesh=mesh, batch_size=evaluate.batch_size)
    found = {}
    for arm, key in zip(tqdm(run.arms, desc=f"proxies {run.name}", unit="text", dynamic_ncols=True), pipeline.arms):
        documents, tokens = student_documents(
            pipeline.workdir / "audit" / key, directory, pipeline.config.subset.retokenize
        )
        chosen = np.unique(np.linspace(0, len(tokens) - 1, min(settings.num_documents, len(tokens))).astype(int))
        texts, ids = [documents[i].text for i in chosen], [tokens[i] for i in chosen]
        nll, counts = proxies.corpus_nll(scorer, model, ids)
        values = {"nll": nll.sum() / counts.sum()}
        recorded = [getattr(documents[i], "log_probs", None) for i in chosen]
        if all(log_probs is not None for log_probs in recorded):
            values["excess_nll"] = proxies.excess_nll(
                nll, -np.array([x.sum(dtype=np.float64) for x in recorded]), sum(map(len, recorded))
            )
        if benchmark:
            values["hidden_similarity"] = proxies.hidden_similarity(vectors(ids), benchmark_vectors)
            values["tfidf_similarity"] = proxies.tfidf_similarity(texts, benchmark)
            if settings.sentence_encoder:
                values["sentence_similarity"] = proxies.sentence_similarity(texts, benchmark, settings.sentence_encoder)
        if real_gradient is not None:
            gradient = proxies.gradient(params, model, rows(tokens), mesh=mesh, batch_size=evaluate.batch_size)
            values["gradient_alignment"] = proxies.gradient_cosine(gradient, real_gradient)
        found[arm.key] = {name: float(value) for name, value in values.items()}
    return found


def _texts(questions: dict[str, list], pairs: dict[str, list], limit: int) -> list[str]:
    """What the capability suites ask and accept as right, at most `limit` texts of each suite, evenly spread."""
    kinds = [[f"{row['question']} {row['choices'][row['gold']].strip()}" for row in rows] for rows in questions.values()]
    kinds += [[row["sentence_good"] for row in rows] for rows in pairs.values()]
    return [rows[i] for rows in kinds for i in np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))]
