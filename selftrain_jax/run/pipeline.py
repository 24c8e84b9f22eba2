"""What the stages of one run do, in order: lab -> sample -> audit -> subset -> train -> evaluate -> report.

An *arm* is one training text with everything made from it: the main one, "self" (the source model's own documents) or
"corpus" (those of `config.corpus`), and a control for every entry of `config.controls`. Each arm has
`subset.num_subsets` subsets, and each subset trains one model.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Callable, Iterator

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import as_path, file_fingerprint, write_json
from selftrain_jax.core.storage import CHECKPOINTS, Workdir
from selftrain_jax.data import clean, training_set
from selftrain_jax.data.audit import load_benchmark_texts
from selftrain_jax.data.corpus import corpus_fingerprint, read_corpus
from selftrain_jax.data.generate import draw_shards, finish_corpus, sampling_dtype, sampling_progress
from selftrain_jax.data.texts import load_texts
from selftrain_jax.data.training_set import check_same_tokenizer, read_subset
from selftrain_jax.distributed.mesh import is_local, local_mesh, make_mesh
from selftrain_jax.evaluation import suite
from selftrain_jax.lab import pretrain
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_world_files
from selftrain_jax.models import hf
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer
from selftrain_jax.report import page as report
from selftrain_jax.run import summary
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.run.stages import Stage
from selftrain_jax.training.checkpoint import restore_params
from selftrain_jax.training.log import training_progress
from selftrain_jax.training.loop import train

LAB = "lab:"


@dataclasses.dataclass
class Pipeline:
    """The stages of `config` in `workdir`; `mesh` is made when a stage first needs it.

    A workdir that is in a bucket comes as `storage.Workdir`; `workdir` is then its copy on this machine, in which
    stages work, and `home` the folder itself. On disk both are the same. `wandb` and `profile` are those of
    `training.loop.train`."""

    config: RunConfig
    workdir: Workdir | pathlib.Path
    command: str = ""
    wandb: str = ""
    profile: bool = False

    def __post_init__(self):
        place = self.workdir if isinstance(self.workdir, Workdir) else Workdir(self.workdir)
        self.place, self.home, self.workdir = place, place.path, place.local
        if self.config.lab is None:
            for setting, value in self._references().items():
                if value.startswith(LAB):
                    raise InputError(f"setting {setting}={value!r} needs a lab, but the config has none (lab=None)")

    # What exists, by name.

    @property
    def main(self) -> str:
        """The arm that the controls are compared with."""
        return "corpus" if self.config.corpus else "self"

    @property
    def arms(self) -> dict[str, ControlSettings]:
        """Arm name -> where its text comes from."""
        corpus = self.config.corpus
        main = ControlSettings(corpus=corpus) if corpus else ControlSettings(source=self.config.source)
        return {self.main: main, **self.config.controls}

    @property
    def models(self) -> dict[str, tuple[str, int] | None]:
        """Evaluated model -> (arm, subset), None for the untouched student."""
        trained = {f"{arm}-{k}": (arm, k) for k in range(self.config.subset.num_subsets) for arm in self.arms}
        return {"base": None, **trained}

    @property
    def student(self) -> str:
        return self.config.student or self.config.source

    @functools.cached_property
    def mesh(self):

        return make_mesh(self.config.mesh)

    @functools.cached_property
    def own_mesh(self):
        """Where each process of a job samples and evaluates by itself; `mesh` in a job of one."""

        return local_mesh(self.mesh)

    def _references(self) -> dict[str, str]:
        """Every model and file that the config names, by setting."""
        config = self.config
        named = {"corpus": config.corpus} if config.corpus else {"source": config.source}
        named["student"] = self.student
        named |= {f"audit.benchmarks.{name}": path for name, path in config.audit.benchmarks.items()}
        named |= {f"evaluate.{name}": path for name, path in config.evaluate.files().items()}
        for name, control in config.controls.items():
            named |= {
                f"controls.{name}.{field}": value for field, value in dataclasses.asdict(control).items() if value
            }
        return named

    def check_files(self) -> None:
        """Raises `InputError` for a file or model from outside the workdir that is missing or broken, before any
        work.
        """

        corpora = {"corpus", *(f"controls.{name}.corpus" for name in self.config.controls)}
        for setting, value in self._references().items():
            if setting in corpora:
                self._check_corpus(setting, value)
            elif value.startswith(LAB):
                continue
            elif setting in ("source", "student") or setting.endswith(".source"):
                path = self.model_path(value)
                check_tokenizer(hf.check_pretrained(path), load_tokenizer(path))
            elif not pathlib.Path(value).is_file():
                raise InputError(f"setting {setting}: file not found: {value}")
            elif setting.startswith("audit."):
                load_benchmark_texts(value)
            elif setting.startswith("controls."):
                load_texts(value)
        evaluated = self.config.evaluate.files().values()
        if not any(reference.startswith(LAB) for reference in (self.student, *evaluated)):
            suite.read_inputs(self.config.evaluate, self.path, hf.load_config(self.model_path(self.student)))

    def _check_corpus(self, setting: str, path: str) -> None:

        try:
            provenance = read_corpus(path).manifest["provenance"]
            if not self.config.subset.retokenize and not self.student.startswith(LAB):
                check_same_tokenizer(f"corpus {path}", provenance, self.model_path(self.student))
        except InputError as e:
            raise InputError(f"setting {setting}: {e}") from None

    # Paths and things loaded from them.

    def corpus_path(self, arm: str) -> pathlib.Path:
        """The corpus that an arm's documents are in before the audit."""
        return pathlib.Path(self.arms[arm].corpus or self.workdir / "sample" / arm / "corpus")

    def training_text(self, arm: str) -> clean.TrainingText:
        """Where an arm's documents are before the audit."""
        texts = self.arms[arm].texts
        return clean.TrainingText(texts=self.path(texts)) if texts else clean.TrainingText(self.corpus_path(arm))

    def checkpoints(self, model: str) -> pathlib.PurePath:
        """Where the checkpoints of a trained model are."""
        return self.home / "train" / model / CHECKPOINTS

    def _storage(self, stage: str) -> dict[str, Any]:
        """For trainings: where checkpoints go, and what must be safe before one counts."""
        return {
            "checkpoints": self.home / stage / CHECKPOINTS,
            "before_save": functools.partial(self.place.send, stage),
        }

    def path(self, reference: str) -> pathlib.Path:
        """A file named in the config; "lab:suites/x.jsonl" lies in the lab's world."""
        if reference.startswith(LAB):
            return self.workdir / "lab" / "world" / reference[len(LAB) :]
        return pathlib.Path(reference)

    def model_path(self, reference: str) -> pathlib.Path:
        """The directory of a model named in the config; "lab:base" is the lab's base model."""

        if reference.startswith(LAB):
            return self.workdir / "lab" / reference[len(LAB) :] / "model"
        return resolve_model(reference, self.config.revision or None if not pathlib.Path(reference).is_dir() else None)

    def _file_inputs(self, references: dict[str, str]) -> Callable[[], dict[str, str]]:
        outside = {name: path for name, path in references.items() if path and not path.startswith(LAB)}
        return lambda: {name: file_fingerprint(path) for name, path in outside.items()}

    def _model_input(self, name: str, reference: str) -> dict[str, str]:

        return {} if reference.startswith(LAB) else {name: hf.model_fingerprint(self.model_path(reference))}

    @staticmethod
    def _lab_stages(*references: str) -> list[str]:
        stages = {
            "lab/" + r[len(LAB) :] if r in ("lab:base", "lab:other") else "lab/world"
            for r in references
            if r.startswith(LAB)
        }
        return sorted(stages)

    # The stages.

    def stages(self) -> list[Stage]:
        return [
            *self._lab(),
            *(self._sample(arm, origin.source) for arm, origin in self.arms.items() if origin.source),
            *(self._audit(arm, origin) for arm, origin in self.arms.items()),
            *(self._subset(*where) for where in self.models.values() if where),
            *(self._train(*where) for where in self.models.values() if where),
            *(self._evaluate(model) for model in self.models),
            self._report(),
        ]

    def _lab(self) -> Iterator[Stage]:
        lab = self.config.lab
        if lab is None:
            return

        def world_files(directory):

            write_world_files(build_world(lab.world), directory, lab.validation_documents, lab.control_documents)

        def pretrain_model(name, directory):

            world = build_world(lab.world)
            pretrain.pretrain(
                world,
                getattr(lab, name),
                directory,
                mesh=self.mesh,
                description=f"pre-train {name}",
                **self._storage(f"lab/{name}"),
            )

        world = dataclasses.asdict(lab.world)
        counts = {name: getattr(lab, name) for name in ("validation_documents", "control_documents")}
        yield Stage("lab/world", world | counts, (), world_files)
        for name in ("base", "other"):
            settings = dataclasses.asdict(getattr(lab, name))
            if f"{LAB}{name}" in self._references().values():
                work = functools.partial(pretrain_model, name)
                far = functools.partial(training_progress, epochs=getattr(lab, name).train.epochs)
                yield Stage(f"lab/{name}", settings, ("lab/world",), work, together=True, progress=far)

    def _sample(self, arm: str, source: str) -> Stage:
        settings = dataclasses.asdict(self.config.sample) | {"source": source}
        del settings["batch_size"]  # changes nothing, and may have to be lowered half-way

        def work(directory):

            draw_shards(self.model_path(source), self.config.sample, directory / "corpus", mesh=self.own_mesh, name=arm)

        def finish(directory):

            return finish_corpus(self.model_path(source), self.config.sample, directory / "corpus", name=source)

        def externals():

            # "auto" must not change in the middle of a corpus.
            return self._model_input("source", source) | {"dtype": sampling_dtype(self.config.sample)}

        return Stage(
            f"sample/{arm}",
            settings,
            self._lab_stages(source),
            work,
            externals,
            grows=("num_samples",),
            together=True,
            finish=finish,
            progress=functools.partial(sampling_progress, self.config.sample),
        )

    def _audit(self, arm: str, origin: ControlSettings) -> Stage:
        audit = self.config.audit
        # Only a given corpus is named: the settings of runs from before there was such a thing stay what they were.
        settings = dataclasses.asdict(audit) | {"texts": origin.texts, "source": origin.source}
        settings |= {"corpus": origin.corpus} if origin.corpus else {}

        def work(directory):

            benchmarks = {name: self.path(path) for name, path in audit.benchmarks.items()}
            return clean.audit_text(self.training_text(arm), benchmarks, audit, directory)

        def externals():

            return self._file_inputs(files)() | ({"corpus": corpus_fingerprint(origin.corpus)} if origin.corpus else {})

        before = [f"sample/{arm}"] if origin.source else []
        files = {f"benchmarks.{name}": path for name, path in audit.benchmarks.items()} | {"texts": origin.texts}
        return Stage(f"audit/{arm}", settings, [*before, *self._lab_stages(*files.values())], work, externals)

    def _subset(self, arm: str, k: int) -> Stage:
        subset, train = self.config.subset, self.config.train
        settings = dataclasses.asdict(subset) | {
            "index": k,
            "student": self.student,
            "sequence_length": train.sequence_length,
        }

        def work(directory):

            return training_set.write_subset(
                self.workdir / "audit" / arm,
                self.training_text(arm),
                self.model_path(self.student),
                subset,
                k,
                train.sequence_length,
                directory,
            )

        before = [f"audit/{arm}", *self._lab_stages(self.student)]
        return Stage(f"subset/{arm}-{k}", settings, before, work)

    def _train(self, arm: str, k: int) -> Stage:
        settings = dataclasses.asdict(self.config.train) | {"student": self.student}
        evaluate = self.config.evaluate
        light, measured = evaluate.for_curve(), evaluate.files() if evaluate.curve_points else {}
        if evaluate.curve_points:
            curve = {name: getattr(evaluate, name) for name in ("curve_points", "curve_items")}
            settings |= {"curve": light.stage_settings() | curve}

        def work(directory):

            student = self.model_path(self.student)
            model_config = hf.load_config(student)
            rows = read_subset(self.workdir / "subset" / f"{arm}-{k}")
            train_config = dataclasses.replace(self.config.train, seed=self.config.train.seed + k)

            def measure(step, params):
                suite.evaluate_model(
                    (model_config, params),
                    student,
                    light,
                    self.path,
                    directory / "curve" / str(step),
                    mesh=self.mesh,
                    name=f"{arm}-{k}",
                    limit=evaluate.curve_items,
                )

            return train(
                lambda: hf.load_pretrained(student, mesh=self.mesh)[1],
                model_config,
                rows,
                train_config,
                directory,
                mesh=self.mesh,
                description=f"train {arm}-{k}",
                wandb=self.wandb,
                profile=self.profile,
                measure=measure,
                measure_points=evaluate.curve_points,
                **self._storage(f"train/{arm}-{k}"),
            )

        return Stage(
            f"train/{arm}-{k}",
            settings,
            [f"subset/{arm}-{k}", *self._lab_stages(self.student, *measured.values())],
            work,
            lambda: self._model_input("student", self.student) | self._file_inputs(measured)(),
            together=True,
            progress=functools.partial(training_progress, epochs=self.config.train.epochs),
        )

    def _evaluate(self, model: str) -> Stage:
        evaluate = self.config.evaluate
        settings = evaluate.stage_settings() | {"student": self.student}

        def work(directory):

            return suite.evaluate_model(
                self._load(model),
                self.model_path(self.student),
                evaluate,
                self.path,
                directory,
                mesh=self.own_mesh,
                name=model,
            )

        before = [] if self.models[model] is None else [f"train/{model}"]
        references = evaluate.files()
        return Stage(
            f"evaluate/{model}",
            settings,
            [*before, *self._lab_stages(self.student, *references.values())],
            work,
            lambda: self._file_inputs(references)() | self._model_input("student", self.student),
            together=self._spans_processes,
        )

    def _spans_processes(self) -> bool:
        """Whether not even the tensor axis fits the devices of one process."""

        return not is_local(self.own_mesh)

    def _load(self, model: str) -> tuple[Any, Any]:
        """(config, params on `own_mesh`) of an evaluated model."""

        student = self.model_path(self.student)
        if self.models[model] is not None:
            config = hf.load_config(student)
            return config, restore_params(self.checkpoints(model), config, self.own_mesh)
        return hf.load_pretrained(student, mesh=self.own_mesh)

    def _report(self) -> Stage:
        def work(directory):

            report.write_report(directory, summary.report_data(self))

        settings = {"title": self.config.title}
        return Stage("report", settings, [f"evaluate/{model}" for model in self.models], work)


def save_config(workdir: pathlib.PurePath, config: RunConfig) -> None:
    """Leaves the resolved settings in `workdir/config.json`; `InputError` when nothing can be written there."""
    workdir = as_path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", dataclasses.asdict(config))
    except OSError as e:
        raise InputError(f"workdir {workdir} cannot be written ({e.strerror or e}): name another --workdir") from None
