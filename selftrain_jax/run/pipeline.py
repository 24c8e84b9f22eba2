"""One run: its stages in order (lab, plant, sample, audit, subset, train, evaluate, report).

The untouched student is evaluated first, and what is there already is made rows before anything is sampled: what these
refuse is refused before the long work. What a stage works with is imported when it works: how a run stands is told
without JAX."""

import dataclasses
import pathlib

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import as_path, write_json
from selftrain_jax.run.evaluate import evaluate_stage, report_stage
from selftrain_jax.run.leaks import leak_stages
from selftrain_jax.run.names import LAB, RunNames
from selftrain_jax.run.plant import plant_stages
from selftrain_jax.run.recover import recover_stage
from selftrain_jax.run.sample import lab_stages, sample_stage
from selftrain_jax.run.stages import Stage
from selftrain_jax.run.train import audit_stage, subset_stage, train_stage


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
            *leak_stages(self).values(),
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
        return list(lab_stages(lineage, "lab", lambda: self.mesh, models=models, files=named, saving=self.saving))

    def _sample(self, arm: str, source: str) -> Stage:
        after, sample = self.lab_stages(source), self.config.sample
        return sample_stage(f"sample/{arm}", source, lambda: self.model_path(source), sample, lambda: self.mesh, after)


def save_config(workdir: pathlib.PurePath, config: object, name: str = "config.json") -> None:
    """Leaves the resolved settings in `workdir`; `InputError` when nothing can be written there."""
    workdir = as_path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / name, dataclasses.asdict(config))
    except OSError as e:
        raise InputError(f"workdir {workdir} cannot be written ({e.strerror or e}): name another --workdir") from None
