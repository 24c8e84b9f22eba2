"""One run: its stages in order (lab, plant, sample, audit, subset, train, evaluate, report), and what is checked
before them.

The untouched student is evaluated first, and what is there already is made rows before anything is sampled: what these
refuse is refused before the long work."""

import dataclasses
import pathlib
import warnings
from typing import Any, Iterable, Mapping

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import as_path, write_json
from selftrain_jax.core.rows import has_text
from selftrain_jax.data.audit import load_benchmark_texts
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.subset import check_most
from selftrain_jax.data.texts import load_texts
from selftrain_jax.data.training_set import check_budget, check_same_tokenizer
from selftrain_jax.evaluation import suite
from selftrain_jax.models import hf
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer, start_ids, tokenizer_fingerprint
from selftrain_jax.models.ops import attention_implementation
from selftrain_jax.run import leaks
from selftrain_jax.run.evaluate import check_reference, evaluate_stage, report_stage
from selftrain_jax.run.names import LAB, MADE, PLANT, RunNames
from selftrain_jax.run.plant import plant_stages
from selftrain_jax.run.recover import recover_stage
from selftrain_jax.run.sample import lab_stages, sample_stage
from selftrain_jax.run.stages import Stage
from selftrain_jax.run.summary import check_groups
from selftrain_jax.run.train import audit_stage, subset_stage, train_stage
from selftrain_jax.sampling.sampler import check_length
from selftrain_jax.training.loop import check_lengths


@dataclasses.dataclass
class Pipeline(RunNames):
    """A run with what it does; `wandb` and `profile` are those of `training.loop.train`."""

    wandb: str = ""
    profile: bool = False

    def stages(self) -> list[Stage]:
        trained = [where for where in self.models.values() if where]
        given, written = ([arm for arm, o in self.arms.items() if bool(o.source) == made] for made in (False, True))
        base, after = ([model for model, where in self.models.items() if bool(where) == made] for made in (False, True))
        recovery = self.config.recovery

        def rows(arms):
            yield from (audit_stage(self, arm) for arm in arms)
            yield from (subset_stage(self, arm, k) for arm, k in trained if arm in arms)

        stages = [
            *self._lab(),
            *plant_stages(self, self.wandb, self.profile),
            *(evaluate_stage(self, model) for model in base),
            *(recover_stage(self, model) for model in base if recovery),
            *rows(given),
            *(self._sample(arm, self.arms[arm].source) for arm in written),
            *leaks.leak_stages(self).values(),
            *rows(written),
            *(train_stage(self, arm, k, self.wandb, self.profile) for arm, k in trained),
            *(evaluate_stage(self, model) for model in after),
            *(recover_stage(self, model) for model in after if recovery),
        ]
        return [*stages, report_stage(self, [stage.name for stage in stages])]

    def _lab(self) -> list[Stage]:
        if self.config.lab is None:
            return []
        lineage, named = self.config.lab.lineage(), self.references()
        models = [name for name in lineage.models if f"{LAB}{name}" in named.values()]
        files = {setting: value for setting, value in named.items() if value.removeprefix(LAB) not in lineage.models}
        return list(lab_stages(lineage, "lab", lambda: self.mesh, models=models, files=files, saving=self.saving))

    def _sample(self, arm: str, source: str) -> Stage:
        after, sample = self.lab_stages(source), self.config.sample
        return sample_stage(f"sample/{arm}", source, lambda: self.model_path(source), sample, lambda: self.mesh, after)

    def check_files(self) -> None:
        """Raises `InputError` for a file or model from outside the workdir that is missing or broken, before any
        work."""
        named = dict.fromkeys([self.untouched, *([] if self.config.corpus else [self.config.source])])
        if self.config.revision and all(name.startswith(LAB) or pathlib.Path(name).is_dir() for name in named):
            raise InputError(
                f"setting revision={self.config.revision!r} applies to hub names, but {' and '.join(named)} is here "
                "already: leave it out, or name the folder of that revision"
            )
        own = {self.config.source, self.config.student} if self.config.revision else set()
        for setting, value in self.references().items():
            other = setting == "evaluate.reference" or setting.startswith("controls.") and setting.endswith(".source")
            if other and value in own and not value.startswith(LAB) and not pathlib.Path(value).is_dir():
                raise InputError(
                    f"setting {setting}={value!r} has the name of source or student, whose "
                    f"revision={self.config.revision!r} it would be, too: name the folder of the revision that is meant"
                )
        trained: dict[str, list[str]] = {}
        corpora = {"corpus", *(f"controls.{name}.corpus" for name in self.config.controls)}
        for setting, value in self.references().items():
            if setting in corpora:
                self._check_corpus(setting, value)
            elif value.startswith(MADE):
                if setting.endswith("source"):
                    self._check_source(setting, value)
            elif setting in ("source", "student", "evaluate.reference") or setting.endswith(".source"):
                path = self.model_path(value)
                config, tokenizer = hf.check_pretrained(path), load_tokenizer(path)
                check_tokenizer(config, tokenizer)
                if setting == "evaluate.reference" and not self.untouched.startswith(LAB):
                    check_reference(path, self.model_path(self.untouched))
                if setting in ("student", "evaluate.reference"):
                    continue
                start_ids(self.config.sample.start, config, tokenizer)
                self._check_source(setting, value)
            elif not pathlib.Path(value).is_file():
                raise InputError(f"setting {setting}: file not found: {value}")
            elif setting.startswith("leaks."):
                load_texts(value)
            elif setting.startswith("audit."):
                load_benchmark_texts(value)
            elif setting.startswith(("controls.", "plant.", "recovery.")):
                trained[setting] = load_texts(value)
        evaluate = self.config.evaluate
        if self.config.plant:  # its probes are yet to be made
            none = dict.fromkeys(("reference", "recall_shots", "discoverable"))
            evaluate = dataclasses.replace(evaluate, probes="", nonmembers="", **none)
        if not any(reference.startswith(MADE) for reference in (self.untouched, *evaluate.files().values())):
            student = self.model_path(self.untouched)
            tokenizer = load_tokenizer(student)
            *texts, probes = suite.read_inputs(evaluate, self.path, hf.load_config(student), tokenizer)
            check_groups(probes, evaluate)
            suite.unknown_shares(evaluate, *texts, tokenizer)
            if not any(path.startswith(LAB) for path in self.config.leaks.references.values()):
                leaks.known(self, tokenizer, with_probes=not self.config.plant)
            for name, documents in texts[0].items():
                for setting, read in trained.items():
                    if twice := _words(documents) & _words(read):
                        what = f"setting {setting}: {len(twice)} of its texts are in evaluate.texts.{name}, too"
                        warnings.warn(
                            f"{what}, whose figures then speak of text trained on", InputWarning, stacklevel=2
                        )

    def check_lengths(self) -> None:
        """Raises `InputError` for documents or rows that do not fit a model's context, and for a text too short for one
        batch, or, where it and the student's tokenizer are there, for its budget, before any work."""
        train, lab, plant = self.config.train, self.config.lab, self.config.plant
        sample, subset = self.config.sample, self.config.subset

        def context(model: str) -> int:
            model = self.untouched if model.startswith(PLANT) else model
            made = lab and model.startswith(LAB) and lab.lineage().models.get(model.removeprefix(LAB))
            return (made or hf.load_config(self.model_path(model))).max_position

        check_lengths(train, context(self.student), (subset.num_tokens - 1) // train.sequence_length)
        for stage in filter(None, (plant, self.config.recovery)):
            check_lengths(stage.train, context(self.student), stage.num_rows)
        for origin in self.arms.values():
            if origin.source:
                check_length(sample, context(origin.source))
                # Of tokens that are read as they were drawn; of a text of theirs there may be more.
                if subset.retokenize is False or subset.retokenize == "auto" and origin.source == self.student:
                    what = f"the {sample.num_samples} documents of {origin.source} (sample.num_samples)"
                    check_most(sample.num_samples, sample.num_fed, subset, what)
        reader = self.model_path(self.untouched)  # of what a lab makes, perhaps not yet
        for arm, origin in self.arms.items():
            there = origin.corpus or origin.texts and self.path(origin.texts).is_file()
            if there and (reader / "tokenizer.json").is_file():
                check_budget(self.training_text(arm), reader, subset)

    def check_attention(self) -> None:
        """Raises `InputError` where `train.attention` is not for this device, or not for a student that is there."""
        train = self.config.train
        try:
            model = hf.load_config(self.model_path(self.untouched))
            size, capped = model.head_dim, model.attention_softcap is not None
        except InputError:  # a lab's, not made yet
            size, capped = 64, False
        try:
            attention_implementation(train.attention, train.dtype, size, train.document_boundaries, capped)
        except InputError as e:
            raise InputError(f"train {e}") from None

    def _check_source(self, setting: str, source: str) -> None:
        path = self.model_path(source)
        if self._needs_student_tokens and (path / "tokenizer.json").is_file():
            size = len(load_tokenizer(path).get_vocab())
            tokens = {"tokenizer_fingerprint": tokenizer_fingerprint(path), "vocab_size": size}
            self._check_tokens(setting, f"text of {source}", tokens)

    def _check_corpus(self, setting: str, path: str) -> None:
        try:
            provenance = read_corpus(path).manifest["provenance"]
        except InputError as e:
            raise InputError(f"setting {setting}: {e}") from None
        if self._needs_student_tokens:
            self._check_tokens(setting, f"corpus {path}", provenance)

    @property
    def _needs_student_tokens(self) -> bool:
        """Whether texts must come in the tokens of a student that is there already."""
        return not self.config.subset.retokenize and not self.untouched.startswith(LAB)

    def _check_tokens(self, setting: str, what: str, provenance: Mapping[str, Any]) -> None:
        """Raises `InputError` where the student can read only the text of `what`, and `retokenize` forbids it."""
        try:
            check_same_tokenizer(what, provenance, self.model_path(self.untouched))
        except InputError as e:
            raise InputError(f"setting {setting}: {e}") from None


def _words(texts: Iterable[str]) -> set[str]:
    """The texts that are not blank, with single spaces for all white space."""
    return {" ".join(text.split()) for text in texts if has_text(text)}


def save_config(workdir: pathlib.PurePath, config: object, name: str = "config.json") -> None:
    """Leaves the resolved settings in `workdir`; `InputError` when nothing can be written there."""
    workdir = as_path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / name, dataclasses.asdict(config))
    except OSError as e:
        raise InputError(f"workdir {workdir} cannot be written ({e.strerror or e}): name another --workdir") from None
