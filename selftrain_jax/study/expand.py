"""What there is to do in a study: from a `StudyConfig` to units of work that share what they can.

A study is a folder:

    lab/SEED/world, lab/SEED/MODEL        worlds and pre-trained models (only with a lab)
    shuffled/SEED                         the words of the real text in random order
    fresh/STUDENT-SEED                    real text with fresh sequences among it (only where asked for)
    corpora/SEED/SOURCE                   one corpus per source, temperature and seed
    runs/STUDENT-SEED                     an ordinary run: every arm's subset, training and evaluation, and its report
    again/STUDENT-SEED                    the untouched student, evaluated a second time
    noise/STUDENT-SEED                    the student with weights moved at random, evaluated
    tasks/STUDENT-SEED/MODEL              tasks of the harness
    proxies/STUDENT-SEED/ARM              what may predict which text helps
    generations/MODE/STUDENT-SEED/G       the loop on its own output: an ordinary run each
    report/                               the study's page and tables

Every unit consists of a run's stages, which are done once, skipped when done, and refused when their settings
changed, or, where that is asked for, made anew.
"""

import dataclasses
import functools
import itertools
import pathlib
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import SUITES
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.report.study_data import CONTROLS
from selftrain_jax.run import stages
from selftrain_jax.run.names import LAB
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.sample import lab_stages, sample_stage
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.run.stages import Stage
from selftrain_jax.sampling.settings import SampleSettings
from selftrain_jax.study.controls import FILE, fresh_stage, shuffled_stage
from selftrain_jax.study.generations import ACCUMULATED, MODEL, generation_stages
from selftrain_jax.study.model import Arm, Generation, Run, Unit
from selftrain_jax.study.settings import DATA, SEEDS_APART, Condition, StudyConfig
from selftrain_jax.study.tasks import task_unit, tasks_stage
from selftrain_jax.study.untouched import copied_base, evaluated_again, evaluated_at_random, proxies_stage

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclasses.dataclass
class Study:
    """The runs, generations and units of `config` in `workdir`."""

    config: StudyConfig
    workdir: pathlib.Path
    command: str = ""

    def __post_init__(self):
        self.workdir = pathlib.Path(self.workdir)

    @functools.cached_property
    def mesh(self) -> "Mesh":
        from selftrain_jax.distributed.mesh import make_mesh

        return make_mesh(self.config.mesh)

    # Where things are.

    def model_path(self, name: str, seed: int) -> str:
        """What a run calls the model: its directory, or hub name."""
        return self.config.models[name].path or str(self.workdir / "lab" / str(seed) / name / "model")

    def resolve(self, name: str, seed: int) -> pathlib.Path:
        """The directory of a model, from the hub where it is not here."""
        return resolve_model(self.model_path(name, seed), self.config.models[name].revision or None)

    def path(self, reference: str, seed: int, student: str) -> str:
        """A file named in the config; "lab:probes.jsonl" is that of the student, in its own tokens."""
        if reference.startswith(DATA):
            return str(pathlib.Path(self.config.data, reference.removeprefix(DATA)))
        if not reference.startswith(LAB):
            return reference
        file = reference.removeprefix(LAB)
        return str(self.workdir / "lab" / str(seed) / (student if file == "probes.jsonl" else "world") / file)

    def _temperatures(self, source: str) -> tuple[float | None, ...]:
        """Those that the source is sampled at, None being the setting's own; a given corpus has no other."""
        return (self.config.temperatures if not self.config.models[source].corpus else ()) or (None,)

    # Runs and generations.

    @functools.cached_property
    def runs(self) -> list[Run]:
        config, found = self.config, []
        for seed, student, condition in itertools.product(config.seeds, config.students, config.conditions()):
            # Named by values, so that longer lists leave what is there where it is.
            name = f"{student}-{seed}" + f"-n{condition.num_tokens}" * bool(config.budgets)
            name += f"-lr{condition.learning_rate:g}" * bool(config.learning_rates)
            arms = tuple(self._arms(student, seed))
            if len({arm.key for arm in arms}) < len(arms):
                raise InputError(f"models {', '.join(config.models)}: rename what ends as a temperature does")
            settings = self._run_config(student, seed, condition, arms)
            pipeline = Pipeline(settings, self.workdir / "runs" / name, self.command)
            found.append(Run(name, student, condition, seed, arms, pipeline))
        return found

    @functools.cached_property
    def first_runs(self) -> dict[tuple[str, int], Run]:
        """(student, seed) -> its run at the first condition, for what depends on neither budget nor learning rate."""
        found: dict[tuple[str, int], Run] = {}
        for run in self.runs:
            found.setdefault((run.student, run.seed), run)
        return found

    def _arms(self, student: str, seed: int) -> Iterator[Arm]:
        config = self.config
        # The student's own text comes first: it is the main arm of the run.
        for source in config.sources_of(student):
            given, relation = config.models[source].corpus, config.relation(source, student)
            for temperature in self._temperatures(source):
                key = _key(source, temperature)
                made = _corpus_stage(source, config.seeds[0] if config.one_corpus else seed, temperature)
                name = source + (f" t={temperature:g}" if len(self._temperatures(source)) > 1 else "")
                origin = ControlSettings(corpus=given or str(self.workdir / made / "corpus"))
                yield Arm(key, name, relation, origin, () if given else (made,), temperature)
        if config.real:
            yield Arm("real", "real", CONTROLS[0], ControlSettings(texts=self.path(config.real, seed, student)))
        if config.real and config.shuffled:
            yield self._made("shuffled", "shuffled", CONTROLS[1], f"shuffled/{seed}")
        if config.fresh:
            yield self._made("real_fresh", "real+fresh", CONTROLS[2], f"fresh/{student}-{seed}")

    def _made(self, key: str, name: str, relation: str, unit: str) -> Arm:
        """The arm of texts that a unit makes."""
        return Arm(key, name, relation, ControlSettings(texts=str(self.workdir / unit / FILE)), (unit,))

    def _run_config(self, student: str, seed: int, condition: Condition, arms: Sequence[Arm]) -> RunConfig:
        config = self.config
        main, *others = arms
        return RunConfig(
            title=f"{config.title}: {student}, seed {seed}" + (f", {condition.name}" if condition.name else ""),
            corpus=main.origin.corpus,
            student=self.model_path(student, seed),
            revision=config.models[student].revision,
            controls={arm.key: arm.origin for arm in others},
            **self._shared(student, seed, condition),
        )

    def _shared(self, student: str, seed: int, condition: Condition) -> dict[str, Any]:
        """The settings that every run of a student, seed and condition has, files resolved and seeds added."""
        config, evaluate, tokens = self.config, self.config.evaluate, condition.num_tokens
        optimizer = dataclasses.replace(config.train.optimizer, learning_rate=condition.learning_rate)

        def find(files: Mapping[str, str]) -> dict[str, str]:
            return {name: self.path(file, seed, student) for name, file in files.items()}

        return {
            "mesh": config.mesh,
            "sample": self.sample_settings(student, seed),
            "audit": dataclasses.replace(config.audit, benchmarks=find(config.audit.benchmarks)),
            "subset": dataclasses.replace(config.subset, seed=config.subset.seed + seed, num_tokens=tokens),
            "train": dataclasses.replace(config.train, seed=config.train.seed + seed, optimizer=optimizer),
            "evaluate": dataclasses.replace(
                evaluate,
                texts=find(evaluate.texts),
                **{kind: find(getattr(evaluate, kind)) for kind in SUITES},
                probes=evaluate.probes and self.path(evaluate.probes, seed, student),
            ),
            "leaks": dataclasses.replace(config.leaks, references=find(config.leaks.references)),
        }

    def sample_settings(self, source: str, seed: int, temperature: float | None = None) -> SampleSettings:
        sample, start = self.config.sample, self.config.models[source].start
        changed = {"start": start} if start else {}
        changed |= {} if temperature is None else {"temperature": temperature}
        return dataclasses.replace(sample, seed=sample.seed + seed, **changed)

    @functools.cached_property
    def generations(self) -> list[Generation]:
        """Those from the second on; the first is the ordinary run."""
        wanted, found = self.config.generations, []
        numbers = range(2, wanted.count + 1)
        for seed, student, mode, number in itertools.product(self.config.seeds, wanted.students, wanted.modes, numbers):
            folder = self.workdir / "generations" / mode / f"{student}-{seed}" / str(number)
            config = self._generation_config(student, seed, mode, number, folder)
            found.append(Generation(student, mode, seed, number, Pipeline(config, folder, self.command)))
        return found

    def _generation_config(self, student: str, seed: int, mode: str, number: int, folder: pathlib.Path) -> RunConfig:
        model = str(folder / MODEL)
        shared = self._shared(student, seed, next(self.config.conditions()))
        # Other draws than those of the generation before, and no curves.
        temperature = next(iter(self.config.temperatures), None)
        shared["sample"] = self.sample_settings(student, seed + SEEDS_APART * (number - 1), temperature)
        shared["evaluate"] = dataclasses.replace(shared["evaluate"], curve_points=0)
        accumulated = {"corpus": str(folder / ACCUMULATED), "student": model}
        main = {"source": model} if mode == "replace" else accumulated
        title = f"{self.config.title}: {student}, generation {number} ({mode}), seed {seed}"
        return RunConfig(title=title, **main, **shared)

    # The units.

    @functools.cached_property
    def units(self) -> list[Unit]:
        """In an order in which each comes after those that it needs."""
        units = [
            *self.lab_units(),
            *self._shuffled_units(),
            *self._corpus_units(),
            *self._fresh_units(),
            *self._run_units(),
            *self._untouched_units(),
            *self._task_units(),
            *self._proxy_units(),
            *self._generation_units(),
        ]
        for unit in units:  # what names paths in the study's folder may be moved with it
            unit.stages[:] = [dataclasses.replace(stage, root=self.workdir) for stage in unit.stages]
        return units

    def _unit(self, stage: Stage, *needs: str) -> Unit:
        """A stage in the study's own folder."""
        return Unit(stage.name, self.workdir, [stage], needs)

    def lab_units(self) -> Iterator[Unit]:
        for seed in self.config.seeds if self.config.lab else ():
            lineage, files = self.config.lab.with_seed(seed), self.config.files()
            made = lab_stages(lineage, f"lab/{seed}", lambda: self.mesh, models=lineage.models, files=files)
            yield from (self._unit(stage, *stage.after) for stage in made)

    def _model_needs(self, name: str, seed: int) -> tuple[str, ...]:
        """The lab's units before a model can be used."""
        return () if self.config.lab is None or self.config.models[name].path else (f"lab/{seed}/{name}",)

    def _shuffled_units(self) -> Iterator[Unit]:
        for seed in self.config.seeds if self.config.real and self.config.shuffled else ():
            real = self.path(self.config.real, seed, self.config.students[0])
            needs = (f"lab/{seed}/world",) if self.config.real.startswith(LAB) else ()
            yield self._unit(shuffled_stage(f"shuffled/{seed}", real, seed), *needs)

    def _corpus_units(self) -> Iterator[Unit]:
        sampled = [source for source in self.config.writers if not self.config.models[source].corpus]
        seeds = self.config.seeds[:1] if self.config.one_corpus else self.config.seeds
        for seed, source in itertools.product(seeds, sampled):
            model, find = self.model_path(source, seed), functools.partial(self.resolve, source, seed)
            for temperature in self._temperatures(source):
                name, sample = _corpus_stage(source, seed, temperature), self.sample_settings(source, seed, temperature)
                made = self._model_needs(source, seed)
                yield self._unit(sample_stage(name, model, find, sample, lambda: self.mesh, made), *made)

    def _fresh_units(self) -> Iterator[Unit]:
        for run in self.first_runs.values() if self.config.fresh else ():
            seed, own = run.seed, run.arms[0]
            real, world = self.path(self.config.real, seed, run.student), self.config.lab.with_seed(seed).world
            stage = fresh_stage(f"fresh/{run.student}-{seed}", own.origin.corpus, real, world, seed)
            yield self._unit(stage, f"lab/{seed}/world", *own.needs)

    def _run_units(self) -> Iterator[Unit]:
        for run in self.runs:
            pipeline, workdir, config = run.pipeline, run.pipeline.workdir, run.pipeline.config
            made = {stage.name: stage for stage in pipeline.stages()}
            before = self._model_needs(run.student, run.seed)
            first, base = self.first_runs[run.student, run.seed], _base(run)
            if first is run:
                yield Unit(base, workdir, [made["evaluate/base"]], before, config)
            else:
                yield Unit(base, workdir, [copied_base(first, run)], (_base(first),))
            for arm, key in zip(run.arms, pipeline.arms):
                models = [model for model, where in pipeline.models.items() if where and where[0] == key]
                names = [f"{kind}/{model}" for kind in ("subset", "train", "evaluate") for model in models]
                names += [f"evaluate/leaks/{key}"] * self.config.leaks.wanted
                todo = [made[name] for name in (f"audit/{key}", *names)]
                outcome = functools.partial(_outcome, pipeline, key)
                yield Unit(_trained(run, arm), workdir, todo, (*before, *arm.needs), config, outcome)
            needs = (base, *(_trained(run, arm) for arm in run.arms))
            yield Unit(f"{run.name}: report", workdir, [made["report"]], needs, config)

    def _untouched_units(self) -> Iterator[Unit]:
        for run in self.first_runs.values():
            who = f"{run.student}-{run.seed}"
            yield self._unit(evaluated_again(f"again/{who}", run), _base(run))
            yield self._unit(evaluated_at_random(f"noise/{who}", run), _trained(run, run.arms[0]))

    def _proxy_units(self) -> Iterator[Unit]:
        for run in self.first_runs.values() if self.config.proxies.num_documents else ():
            for arm, key in zip(run.arms, run.pipeline.arms):
                name = f"proxies/{run.student}-{run.seed}/{arm.key}"
                stage = proxies_stage(name, self.config.proxies, run.pipeline, key, lambda: self.mesh)
                yield self._unit(stage, _trained(run, arm))

    def _task_units(self) -> Iterator[Unit]:
        for run in self.runs if self.config.tasks.names else ():
            made = {key: _trained(run, arm) for arm, key in zip(run.arms, run.pipeline.arms)}
            for model, where in run.pipeline.models.items():
                stage = tasks_stage(task_unit(run, model), self.config.tasks, run.pipeline, model, lambda: self.mesh)
                yield self._unit(stage, made[where[0]] if where else _base(run))

    def _generation_units(self) -> Iterator[Unit]:
        for g in self.generations:
            first = self.first_runs[g.student, g.seed]
            chain = [h for h in self.generations if (h.student, h.mode, h.seed) == (g.student, g.mode, g.seed)]
            turns = [first.pipeline, *(h.pipeline for h in chain if h.number <= g.number)]
            names = [_trained(first, first.arms[0]), *(h.name for h in chain)]
            made = generation_stages(g.mode, turns)
            yield Unit(g.name, g.pipeline.workdir, made, (names[g.number - 2],), g.pipeline.config)

    # Before any work.


def _key(source: str, temperature: float | None) -> str:
    return source if temperature is None else f"{source}_t{temperature:g}".replace(".", "p")


def _corpus_stage(source: str, seed: int, temperature: float | None) -> str:
    return f"corpora/{seed}/{_key(source, temperature)}"


def _base(run: Run) -> str:
    """The unit that evaluates the untouched student."""
    return f"{run.name}: base"


def _trained(run: Run, arm: Arm) -> str:
    """The unit that trains on an arm."""
    return f"{run.name}: {arm.key}"


def _outcome(pipeline: Pipeline, key: str) -> str:
    """The first subset's mean accuracy and extraction, before (where that is known yet) and after."""
    from selftrain_jax.run.summary import mean_capability

    shown = []
    for model in ("base", f"{key}-0"):
        if stages.manifest_path(pipeline.workdir, f"evaluate/{model}").is_file():
            items = Items.load(pipeline.workdir / "evaluate" / model)
            extracted = items.probes["exact"].mean() if items.probes else None
            shown.append([mean_capability(items), extracted])
    parts = zip(("capability", "extraction"), zip(*shown))
    return ", ".join(
        f"{name} {' -> '.join(f'{v:.1%}' for v in values)}" for name, values in parts if None not in values
    )
