"""What a run refuses before any work: files, models, lengths and devices that do not fit its settings."""

import dataclasses
import pathlib
import warnings
from typing import Any, Iterable, Mapping, Sequence

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.rows import has_text
from selftrain_jax.data.audit import load_benchmark_texts, shared_part
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.subset import check_most
from selftrain_jax.data.texts import load_texts
from selftrain_jax.data.training_set import check_budget, check_same_tokenizer
from selftrain_jax.evaluation import suite
from selftrain_jax.models import hf
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer, start_ids, tokenizer_fingerprint
from selftrain_jax.models.ops import attention_implementation
from selftrain_jax.run.known_text import known
from selftrain_jax.run.measure import check_reference
from selftrain_jax.run.names import LAB, MADE, PLANT, RunNames
from selftrain_jax.run.sample import check_named
from selftrain_jax.run.stages import manifest_path, read_manifest
from selftrain_jax.run.summary import check_groups
from selftrain_jax.sampling.sampler import check_length
from selftrain_jax.training import loop

_RUN, _SHARED = 20, 0.01
"""Words in a row that are no chance, and the share of a text, in such runs, above which it is told."""


def check_files(run: RunNames) -> None:
    """Raises `InputError` for a file or model from outside the workdir that is missing or broken, before any
    work."""
    named = dict.fromkeys([run.untouched, *([] if run.config.corpus else [run.config.source])])
    if run.config.revision and all(name.startswith(LAB) or pathlib.Path(name).is_dir() for name in named):
        raise InputError(
            f"setting revision={run.config.revision!r} applies to hub names, but {' and '.join(named)} is here "
            "already: leave it out, or name the folder of that revision"
        )
    own = {run.config.source, run.config.student} if run.config.revision else set()
    for setting, value in run.references().items():
        other = setting == "evaluate.reference" or setting.startswith("controls.") and setting.endswith(".source")
        if other and value in own and not value.startswith(LAB) and not pathlib.Path(value).is_dir():
            raise InputError(
                f"setting {setting}={value!r} has the name of source or student, whose "
                f"revision={run.config.revision!r} it would be, too: name the folder of the revision that is meant"
            )
    if run.config.evaluate.reference and run.config.evaluate.reference in (run.student, run.untouched):
        text = "setting evaluate.reference is the student itself: of base, the reference attack tells nothing"
        warnings.warn(text, InputWarning, stacklevel=2)
    trained: dict[str, list[str]] = {}
    corpora = {"corpus", *(f"controls.{name}.corpus" for name in run.config.controls)}
    for setting, value in run.references().items():
        if setting in corpora:
            _check_corpus(run, setting, value)
        elif value.startswith(MADE):
            if setting.endswith("source"):
                _check_source(run, setting, value)
        elif setting in ("source", "student", "evaluate.reference") or setting.endswith(".source"):
            path = run.model_path(value)
            config, tokenizer = hf.check_pretrained(path), load_tokenizer(path)
            check_tokenizer(config, tokenizer)
            if setting == "evaluate.reference" and not run.untouched.startswith(LAB):
                check_reference(path, run.model_path(run.untouched))
            if setting in ("student", "evaluate.reference"):
                continue
            start_ids(run.config.sample.start, config, tokenizer)
            _check_source(run, setting, value)
        elif not pathlib.Path(value).is_file():
            raise InputError(f"setting {setting}: file not found: {value}")
        elif setting.startswith("leaks."):
            load_texts(value)
        elif setting.startswith("audit."):
            load_benchmark_texts(value)
        elif setting.startswith(("controls.", "plant.", "recovery.")):
            trained[setting] = load_texts(value)
    evaluate = run.config.evaluate
    if run.config.plant:  # its probes are yet to be made
        none = dict.fromkeys(("reference", "recall_shots", "discoverable"))
        evaluate = dataclasses.replace(evaluate, probes="", nonmembers="", **none)
    if not any(reference.startswith(MADE) for reference in (run.untouched, *evaluate.files().values())):
        student = run.model_path(run.untouched)
        tokenizer = load_tokenizer(student)
        *texts, probes = suite.read_inputs(evaluate, run.path, hf.load_config(student), tokenizer)
        check_groups(probes, evaluate)
        suite.unknown_shares(evaluate, *texts, tokenizer)
        if not any(path.startswith(LAB) for path in run.config.leaks.references.values()):
            known(run, tokenizer, with_probes=not run.config.plant)
    warn_of_shared(trained, evaluate.texts)


def warn_of_shared(trained: Mapping[str, Sequence[str]], evaluated: Mapping[str, str]) -> None:
    """Warns of text that is trained on (by setting) and stands in text that is evaluated, too (name -> file)."""
    for name, path in evaluated.items() if trained else ():
        documents = [] if path.startswith(MADE) else load_texts(path)
        for setting, read in trained.items():
            if twice := _words(documents) & _words(read):
                what = f"{len(twice)} of its texts are in evaluate.texts.{name}, too"
            elif (share := shared_part(documents, read, _RUN)) > _SHARED:
                what = f"{share:.0%} of evaluate.texts.{name} stands in it ({_RUN} words in a row)"
            else:
                continue
            what = f"setting {setting}: {what}, whose figures then speak of text trained on"
            warnings.warn(what, InputWarning, stacklevel=2)


def check_lengths(run: RunNames) -> None:
    """Raises `InputError` for documents or rows that do not fit a model's context, and for a text too short for one
    batch, or, where it and the student's tokenizer are there, for its budget, before any work."""
    train, lab, plant = run.config.train, run.config.lab, run.config.plant
    sample, subset = run.config.sample, run.config.subset

    def context(model: str) -> int:
        model = run.untouched if model.startswith(PLANT) else model
        made = lab and model.startswith(LAB) and lab.lineage().models.get(model.removeprefix(LAB))
        return (made or hf.load_config(run.model_path(model))).max_position

    loop.check_lengths(train, context(run.student), (subset.num_tokens - 1) // train.sequence_length)
    for stage in filter(None, (plant, run.config.recovery)):
        loop.check_lengths(stage.train, context(run.student), stage.num_rows)
    for origin in run.arms.values():
        if origin.source:
            check_length(sample, context(origin.source))
            # Of tokens that are read as they were drawn; of a text of theirs there may be more.
            if subset.retokenize is False or subset.retokenize == "auto" and origin.source == run.student:
                what = f"the {sample.num_samples} documents of {origin.source} (sample.num_samples)"
                check_most(sample.num_samples, sample.num_fed, subset, what)
    reader = run.model_path(run.untouched)  # of what a lab makes, perhaps not yet
    for arm, origin in run.arms.items():
        there = origin.corpus or origin.texts and run.path(origin.texts).is_file()
        if there and (reader / "tokenizer.json").is_file():
            check_budget(run.training_text(arm), reader, subset)


def check_made(run: RunNames) -> None:
    """Raises `InputError` for a setting that names what a lab that is there already has not made."""
    if run.config.lab and manifest_path(run.home, "lab/world").is_file():
        made = read_manifest(run.home, "lab/world")["files"]
        check_named(run.config.lab.lineage(), run.references(), made)


def check_attention(run: RunNames) -> None:
    """Raises `InputError` where `train.attention` is not for this device, or not for a student that is there."""
    train = run.config.train
    try:
        model = hf.load_config(run.model_path(run.untouched))
        size, capped = model.head_dim, model.attention_softcap is not None
    except InputError:  # a lab's, not made yet
        size, capped = 64, False
    try:
        attention_implementation(train.attention, train.dtype, size, train.document_boundaries, capped)
    except InputError as e:
        raise InputError(f"train {e}") from None


def _check_source(run: RunNames, setting: str, source: str) -> None:
    path = run.model_path(source)
    if _needs_student_tokens(run) and (path / "tokenizer.json").is_file():
        size = len(load_tokenizer(path).get_vocab())
        tokens = {"tokenizer_fingerprint": tokenizer_fingerprint(path), "vocab_size": size}
        _check_tokens(run, setting, f"text of {source}", tokens)
    student = run.untouched
    if not run.config.subset.retokenize and source.startswith(LAB) and student.startswith(LAB):
        models = run.config.lab.lineage().models
        tokens = [models[name].tokens for model in (source, student) if (name := model.removeprefix(LAB)) in models]
        if len(set(tokens)) > 1:
            raise InputError(
                f"setting {setting}={source!r} writes in tokens of {tokens[0]}, the student {student} reads those of "
                f"{tokens[1]}: set subset.retokenize=True to train on the text"
            )


def _check_corpus(run: RunNames, setting: str, path: str) -> None:
    try:
        provenance = read_corpus(path).manifest["provenance"]
    except InputError as e:
        raise InputError(f"setting {setting}: {e}") from None
    if _needs_student_tokens(run):
        _check_tokens(run, setting, f"corpus {path}", provenance)


def _needs_student_tokens(run: RunNames) -> bool:
    """Whether texts must come in the tokens of a student that is there already."""
    return not run.config.subset.retokenize and not run.untouched.startswith(LAB)


def _check_tokens(run: RunNames, setting: str, what: str, provenance: Mapping[str, Any]) -> None:
    """Raises `InputError` where the student can read only the text of `what`, and `retokenize` forbids it."""
    try:
        check_same_tokenizer(what, provenance, run.model_path(run.untouched))
    except InputError as e:
        raise InputError(f"setting {setting}: {e}") from None


def _words(texts: Iterable[str]) -> set[str]:
    """The texts that are not blank, with single spaces for all white space."""
    return {" ".join(text.split()) for text in texts if has_text(text)}
