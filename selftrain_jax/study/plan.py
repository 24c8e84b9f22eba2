"""From a `StudyConfig` to units of work that share what they can, and their execution, by one process or several.

A study is a folder:

    lab/SEED/world, lab/SEED/MODEL        worlds and pre-trained models (only with a lab)
    shuffled/SEED                         the words of the real text in random order
    corpora/SEED/SOURCE                   one corpus per source, temperature and seed
    runs/STUDENT-SEED                     an ordinary run: every arm's subset, training and evaluation, and its report
    again/STUDENT-SEED                    the untouched student, evaluated a second time
    proxies/STUDENT-SEED/ARM              what may predict which text helps
    generations/MODE/STUDENT-SEED/G       the loop on its own output: an ordinary run each
    report/                               the study's page and tables

Every unit consists of stages, which are done once, skipped when done, and refused when their settings changed.
"""

import dataclasses
import functools
import pathlib
import shutil
import time
from typing import Any, Callable, Iterator, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import file_fingerprint, fingerprint, read_json, write_json, write_jsonl
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.texts import load_texts, shuffle_words
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.proxies import sentence_library
from selftrain_jax.lab import lineages
from selftrain_jax.models import hf
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer
from selftrain_jax.report.study_data import CONTROLS
from selftrain_jax.run import stages, summary
from selftrain_jax.run.pipeline import LAB, Pipeline, save_config
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.run.stages import Stage
from selftrain_jax.study import generations, proxies
from selftrain_jax.study.generations import ACCUMULATED, MODEL
from selftrain_jax.study.model import Arm, Generation, Run, Unit, sample_stage
from selftrain_jax.study.settings import Condition, StudyConfig
from selftrain_jax.training.loop import TrainingDiverged

WAIT_SECONDS, REMIND_SECONDS = 2.0, 600.0


@dataclasses.dataclass
class Study:
    """The units of `config` in `workdir`."""

    config: StudyConfig
    workdir: pathlib.Path
    command: str = ""

    def __post_init__(self):
        self.workdir = pathlib.Path(self.workdir)
        self._fingerprint = fingerprint(dataclasses.asdict(self.config))

    @functools.cached_property
    def mesh(self):

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
        if not reference.startswith(LAB):
            return reference
        rest = reference[len(LAB) :]
        return str(self.workdir / "lab" / str(seed) / (student if rest == "probes.jsonl" else "world") / rest)

    def corpus_path(self, source: str, seed: int, temperature: float | None) -> pathlib.Path:
        given = self.config.models[source].corpus
        return pathlib.Path(given) if given else self.workdir / self._corpus_stage(source, seed, temperature) / "corpus"

    def _corpus_stage(self, source: str, seed: int, temperature: float | None) -> str:
        return f"corpora/{seed}/{_key(source, temperature)}"

    def _shuffled_path(self, seed: int) -> pathlib.Path:
        return self.workdir / "shuffled" / str(seed) / "texts.jsonl"

    # What there is.

    @functools.cached_property
    def runs(self) -> list[Run]:
        config = self.config
        found = []
        for seed in config.seeds:
            for student in config.students:
                for condition in config.conditions():
                    # Named by values, so that longer lists leave what is there where it is.
                    name = f"{student}-{seed}" + f"-n{condition.num_tokens}" * bool(config.budgets)
                    name += f"-lr{condition.learning_rate:g}" * bool(config.learning_rates)
                    arms = tuple(self._arms(student, seed))
                    settings = self._run_config(student, seed, condition, arms)
                    pipeline = Pipeline(settings, self.workdir / "runs" / name, self.command)
                    found.append(Run(name, student, condition, seed, arms, pipeline))
        return found

    def _arms(self, student: str, seed: int) -> Iterator[Arm]:
        config = self.config
        temperatures = config.temperatures or (None,)
        # The student's own text comes first: it is the main arm of the run.
        for source in sorted(config.sources, key=lambda name: name != student):
            for temperature in temperatures if not config.models[source].corpus else (None,):
                name = source + (f" t={temperature:g}" if len(temperatures) > 1 and temperature is not None else "")
                corpus = ControlSettings(corpus=str(self.corpus_path(source, seed, temperature)))
                made = () if config.models[source].corpus else (self._corpus_stage(source, seed, temperature),)
                yield Arm(_key(source, temperature), name, config.relation(source, student), corpus, made)
        if config.real:
            yield Arm("real", "real", CONTROLS[0], ControlSettings(texts=self.path(config.real, seed, student)))
        if config.real and config.shuffled:
            shuffled = ControlSettings(texts=str(self._shuffled_path(seed)))
            yield Arm("shuffled", "shuffled", CONTROLS[1], shuffled, (f"shuffled/{seed}",))

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
        config = self.config
        optimizer = dataclasses.replace(config.train.optimizer, learning_rate=condition.learning_rate)
        find = lambda files: {name: self.path(file, seed, student) for name, file in files.items()}  # noqa: E731
        evaluate = config.evaluate
        return {
            "mesh": config.mesh,
            "sample": dataclasses.replace(config.sample, seed=config.sample.seed + seed),
            "audit": dataclasses.replace(config.audit, benchmarks=find(config.audit.benchmarks)),
            "subset": dataclasses.replace(
                config.subset, seed=config.subset.seed + seed, num_tokens=condition.num_tokens
            ),
            "train": dataclasses.replace(config.train, seed=config.train.seed + seed, optimizer=optimizer),
            "evaluate": dataclasses.replace(
                evaluate,
                texts=find(evaluate.texts),
                multiple_choice=find(evaluate.multiple_choice),
                minimal_pairs=find(evaluate.minimal_pairs),
                probes=evaluate.probes and self.path(evaluate.probes, seed, student),
            ),
        }

    @functools.cached_property
    def generations(self) -> list[Generation]:
        """Those from the second on; the first is the ordinary run."""
        wanted, found = self.config.generations, []
        for seed in self.config.seeds:
            for student in wanted.students:
                for mode in wanted.modes:
                    for number in range(2, wanted.count + 1):
                        folder = self.workdir / "generations" / mode / f"{student}-{seed}" / str(number)
                        config = self._generation_config(student, seed, mode, number, folder)
                        found.append(Generation(student, mode, seed, number, Pipeline(config, folder, self.command)))
        return found

    def _generation_config(self, student: str, seed: int, mode: str, number: int, folder: pathlib.Path) -> RunConfig:

        model = str(folder / MODEL)
        shared = self._shared(student, seed, next(self.config.conditions()))
        # Other draws than those of the generation before, and no curves.
        shared["sample"] = dataclasses.replace(shared["sample"], seed=shared["sample"].seed + 1000 * (number - 1))
        shared["evaluate"] = dataclasses.replace(shared["evaluate"], curve_points=0)
        if self.config.temperatures:
            shared["sample"] = dataclasses.replace(shared["sample"], temperature=self.config.temperatures[0])
        accumulated = {"corpus": str(folder / ACCUMULATED), "student": model}
        main = {"source": model} if mode == "replace" else accumulated
        title = f"{self.config.title}: {student}, generation {number} ({mode}), seed {seed}"
        return RunConfig(title=title, **main, **shared)

    # The units.

    @functools.cached_property
    def units(self) -> list[Unit]:
        """In an order in which each comes after those that it needs."""
        parts = (
            self._lab_units,
            self._shuffled_units,
            self._corpus_units,
            self._run_units,
            self._again_units,
            self._proxy_units,
            self._generation_units,
        )
        return [unit for part in parts for unit in part()]

    def _lab_units(self) -> Iterator[Unit]:
        lab = self.config.lab
        if lab is None:
            return

        for seed in self.config.seeds:
            seeded = lab.with_seed(seed)
            world = f"lab/{seed}/world"

            def write(directory, seeded=seeded):
                lineages.write_world(seeded, directory)
                self._check_lab_files(directory)

            plan = [Stage(world, seeded.world_settings(), (), write, functools.partial(lineages.world_inputs, seeded))]
            for name, model in seeded.models.items():

                def pretrain(directory, name=name, seeded=seeded, world=world):
                    lineages.pretrain_model(
                        seeded, name, self.workdir / world, directory, mesh=self.mesh, description=f"pre-train {name}"
                    )

                plan.append(Stage(f"lab/{seed}/{name}", dataclasses.asdict(model), (world,), pretrain, together=True))
            for stage in plan:
                yield Unit(stage.name, self.workdir, plan, frozenset({stage.name}), tuple(stage.after))

    def _shuffled_units(self) -> Iterator[Unit]:
        for seed in self.config.seeds if self.config.real and self.config.shuffled else ():
            real = self.path(self.config.real, seed, self.config.students[0])

            def work(directory, real=real, seed=seed):
                texts = shuffle_words(load_texts(real), seed)
                write_jsonl(self._shuffled_path(seed), ({"text": text} for text in texts))

            inputs = lambda real=real: {"real": file_fingerprint(real)}  # noqa: E731
            stage = Stage(f"shuffled/{seed}", {"seed": seed}, (), work, inputs)
            needs = (f"lab/{seed}/world",) if self.config.real.startswith(LAB) else ()
            yield Unit(stage.name, self.workdir, [stage], frozenset({stage.name}), needs)

    def _model_needs(self, name: str, seed: int) -> tuple[str, ...]:
        """The lab's units before a model can be used."""
        return () if self.config.lab is None or self.config.models[name].path else (f"lab/{seed}/{name}",)

    def _corpus_units(self) -> Iterator[Unit]:
        config = self.config
        for seed in config.seeds:
            for source in config.sources:
                for temperature in config.temperatures or (None,) if not config.models[source].corpus else ():
                    yield self._corpus_unit(source, seed, temperature)

    def _corpus_unit(self, source: str, seed: int, temperature: float | None) -> Unit:
        sample = dataclasses.replace(self.config.sample, seed=self.config.sample.seed + seed)
        if temperature is not None:
            sample = dataclasses.replace(sample, temperature=temperature)
        model, revision = self.model_path(source, seed), self.config.models[source].revision
        stage = sample_stage(self._corpus_stage(source, seed, temperature), model, revision, sample, lambda: self.mesh)
        return Unit(stage.name, self.workdir, [stage], frozenset({stage.name}), self._model_needs(source, seed))

    def _run_units(self) -> Iterator[Unit]:
        for run in self.runs:
            plan = run.pipeline.stages()
            before = self._model_needs(run.student, run.seed)
            first = self.first_runs[run.student, run.seed]
            base = f"{run.name}: base"
            if first is run:
                yield Unit(base, run.pipeline.workdir, plan, frozenset({"evaluate/base"}), before, run.pipeline.config)
            else:
                copy = [_copied_base(first, run)]
                yield Unit(base, run.pipeline.workdir, copy, frozenset({"evaluate/base"}), (f"{first.name}: base",))
            names = []
            for arm, key in zip(run.arms, run.pipeline.arms):
                wanted = frozenset(
                    stage.name
                    for stage in plan
                    if stage.name == f"audit/{key}" or _belongs(stage.name, key, run.pipeline)
                )
                names.append(f"{run.name}: {arm.key}")
                outcome = functools.partial(_outcome, run.pipeline, key)
                needs = (*before, *arm.needs)
                yield Unit(names[-1], run.pipeline.workdir, plan, wanted, needs, run.pipeline.config, outcome)
            yield Unit(f"{run.name}: report", run.pipeline.workdir, plan, frozenset({"report"}), (base, *names))

    @functools.cached_property
    def first_runs(self) -> dict[tuple[str, int], Run]:
        """(student, seed) -> its run at the first condition, for what depends on neither budget nor learning rate."""
        return {(run.student, run.seed): run for run in reversed(self.runs)}

    def _again_units(self) -> Iterator[Unit]:
        for run in self.runs:
            if run is self.first_runs[run.student, run.seed]:
                stage = _evaluated_again(f"again/{run.student}-{run.seed}", run)
                yield Unit(stage.name, self.workdir, [stage], frozenset({stage.name}), (f"{run.name}: base",))

    def _proxy_units(self) -> Iterator[Unit]:

        for run in self.runs:
            if run is not self.first_runs[run.student, run.seed]:
                continue
            for number, arm in enumerate(run.arms):
                name = f"proxies/{run.student}-{run.seed}/{arm.key}"
                stage = proxies.stage(name, self.config, run, number, lambda: self.mesh)
                yield Unit(name, self.workdir, [stage], frozenset({name}), (f"{run.name}: {arm.key}",))

    def _generation_units(self) -> Iterator[Unit]:

        for g in self.generations:
            before = self.first_runs[g.student, g.seed]
            chain = {
                h.number: h for h in self.generations if (h.student, h.mode, h.seed) == (g.student, g.mode, g.seed)
            }
            plan = generations.stages(g, chain, before)
            names = frozenset(stage.name for stage in plan)
            previous = f"{before.name}: {before.arms[0].key}" if g.number == 2 else generation_name(chain[g.number - 1])
            yield Unit(generation_name(g), g.pipeline.workdir, plan, names, (previous,), g.pipeline.config)

    # Doing them.

    def check(self) -> None:
        """Raises `InputError` for changed settings and for models and files that are missing or broken, before any
        work.
        """
        for unit in self.units:
            stages.check(unit.workdir, unit.plan)
        self._check_inputs()

    def _check_inputs(self) -> None:

        for name, model in self.config.models.items():
            try:
                if model.corpus:
                    read_corpus(model.corpus)
                elif model.path:
                    path = self.resolve(name, self.config.seeds[0])
                    check_tokenizer(hf.check_pretrained(path), load_tokenizer(path))
            except InputError as e:
                raise InputError(f"models.{name}: {e}") from None
        if self.config.real and not self.config.real.startswith(LAB):
            load_texts(self.config.real)
        for unit in self._lab_units():
            for stage in unit.plan if unit.plan[0].name == unit.name else ():
                stages.check_externals(unit.workdir, stage)
        if self.config.proxies.sentence_encoder:
            sentence_library()
        if self.config.lab is not None:
            for setting, path in self.config.files().items():
                if not path.startswith(LAB) and not pathlib.Path(path).is_file():
                    raise InputError(f"setting {setting}: file not found: {path}")
        else:
            for student in self.config.students:
                run = next(run for run in self.runs if run.student == student)
                alone = dataclasses.replace(
                    run.pipeline.config, corpus="", source=run.pipeline.config.student, controls={}
                )
                Pipeline(alone, run.pipeline.workdir).check_files()

    def _check_lab_files(self, world: pathlib.Path) -> None:
        """Raises `InputError` for a setting that names a file which the lab does not make."""
        for setting, path in self.config.files().items():
            name = path.removeprefix(LAB)
            if path.startswith(LAB) and name != "probes.jsonl" and not (world / name).is_file():
                made = sorted(str(file.relative_to(world)) for file in world.rglob("*.jsonl"))
                raise InputError(f"setting {setting}={path!r}: the lab makes {', '.join(made)}")

    def execute(self, shard: tuple[int, int], say: Callable[[str], None]) -> list[str]:
        """Does every `shard[1]`-th unit from `shard[0]` on; waits for those of other shards where it needs them.

        What fails, by its input or because its numbers break, is told and left out with all that needs it; the rest is
        done. What was done before is compared with what it was made from.

        Returns:
          What failed, one line each.

        Raises:
          RunStopped: told to stop, or a disk or another process failed.
        """
        index, count = shard
        failures: list[str] = []
        mine = [(number, unit) for number, unit in enumerate(self.units) if number % count == index]
        for _, unit in mine:
            self._failure(unit.name).unlink(missing_ok=True)
        for number, unit in mine:
            title = f"[{number + 1}/{len(self.units)}] {unit.name}"
            try:
                self._wait(unit, title, say)
                before = unit.done()
                if before:
                    say(f"{title}: done before")
                elif unit.config is not None:
                    save_config(unit.workdir, unit.config)
                if unit.names == {"report"}:
                    _forget_old_report(unit)
                stages.run(unit.workdir, unit.plan, unit.names.__contains__, functools.partial(_say, say, title))
                if not before and (outcome := unit.outcome()):
                    say(f"{title}: {outcome}")
            except (InputError, TrainingDiverged) as e:
                failures.append(f"{unit.name}: {e}")
                say(f"{title}: FAILED: {e}")
                mark = self._failure(unit.name)
                mark.parent.mkdir(parents=True, exist_ok=True)
                write_json(mark, {"study": self._fingerprint, "reason": str(e)})
        return failures

    def _failure(self, name: str) -> pathlib.Path:
        return self.workdir / "failed" / f"{name.replace('/', '_').replace(': ', '_')}.json"

    def _failed(self, name: str) -> bool:
        """Whether a unit failed under these settings; what failed under others may go well now."""
        mark = self._failure(name)
        return mark.is_file() and read_json(mark).get("study") == self._fingerprint

    def _wait(self, unit: Unit, title: str, say: Callable[[str], None]) -> None:
        told = None
        for need in unit.needs:
            other = self._by_name[need]
            while not other.done():
                if self._failed(need):
                    raise InputError(f"needs {need}, which failed")
                if told is None or time.monotonic() - told > REMIND_SECONDS:
                    say(
                        f"{title}: waiting for {need}, the work of another shard; if none runs any more, start it "
                        "again, or "
                        "the study without --shard"
                    )
                    told = time.monotonic()
                time.sleep(WAIT_SECONDS)

    @functools.cached_property
    def _by_name(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    def wait_for_all(self, say: Callable[[str], None]) -> list[str]:
        """Returns when every unit is done or has failed: the failures, one line each."""
        failed = {}
        for unit in self.units:
            try:
                self._wait(dataclasses.replace(unit, needs=(unit.name,)), "report", say)
            except InputError:
                failed[unit.name] = read_json(self._failure(unit.name))["reason"]
        return [f"{name}: {reason}" for name, reason in failed.items()]


def _say(say: Callable[[str], None], title: str, line: str) -> None:
    """Lines of a run name its own stages; here the unit goes before."""
    if not line.endswith("done before"):
        say(f"{title}, {line.split('] ', 1)[-1]}")


def _key(source: str, temperature: float | None) -> str:
    return source if temperature is None else f"{source}_t{temperature:g}".replace(".", "p")


def _belongs(stage: str, key: str, pipeline: Pipeline) -> bool:
    """Whether a subset, training or evaluation is of the arm `key`."""
    kind, _, model = stage.partition("/")
    where = pipeline.models.get(model)
    return kind in ("subset", "train", "evaluate") and where is not None and where[0] == key


def generation_name(g: Generation) -> str:
    """The name of its unit."""
    return f"generations/{g.mode}/{g.student}-{g.seed}/{g.number}"


def _forget_old_report(unit: Unit) -> None:
    """Removes a run's page that was made from fewer arms: it is made anew."""
    (stage,) = (stage for stage in unit.plan if stage.name == "report")
    path = stages.manifest_path(unit.workdir, "report")
    if path.is_file():
        inputs = {name: stages.read_manifest(unit.workdir, name)["fingerprint"] for name in stage.after}
        if read_json(path)["inputs"] != inputs:
            shutil.rmtree(path.parent)


def _outcome(pipeline: Pipeline, key: str) -> str:
    """The first subset's mean accuracy and extraction, before (where that is known yet) and after."""
    shown = []
    for model in ("base", f"{key}-0"):
        if stages.manifest_path(pipeline.workdir, f"evaluate/{model}").is_file():
            items = Items.load(pipeline.workdir / "evaluate" / model)
            extracted = items.probes["exact"].mean() if items.probes else None
            shown.append([summary.mean_capability(items), extracted])
    parts = zip(("capability", "extraction"), zip(*shown))
    return ", ".join(
        f"{name} {' -> '.join(f'{v:.1%}' for v in values)}" for name, values in parts if None not in values
    )


def _copied_base(first: Run, run: Run) -> Stage:
    """The evaluation of the untouched student, which another condition of the same student has done already."""
    (stage,) = (stage for stage in run.pipeline.stages() if stage.name == "evaluate/base")

    def work(directory):
        done = first.pipeline.workdir / "evaluate" / "base"
        for file in done.iterdir():
            if file.name not in ("manifest.json", "started.json"):
                shutil.copy(file, directory)
        return stages.read_manifest(first.pipeline.workdir, "evaluate/base")["result"]

    return dataclasses.replace(stage, work=work)


def _evaluated_again(name: str, run: Run) -> Stage:
    """The evaluation of the untouched student in batches of another size: what differs is numeric noise."""
    evaluate = run.pipeline.config.evaluate
    evaluate = dataclasses.replace(evaluate, batch_size=max(evaluate.batch_size // 2, 1))
    pipeline = dataclasses.replace(run.pipeline, config=dataclasses.replace(run.pipeline.config, evaluate=evaluate))
    (stage,) = (stage for stage in pipeline.stages() if stage.name == "evaluate/base")
    return dataclasses.replace(stage, name=name)
