"""The settings of a run: one frozen dataclass per stage."""

import dataclasses
import os
from typing import Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import SEED_LIMIT
from selftrain_jax.data.settings import AuditConfig, SubsetConfig
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.settings import EvaluateSettings, LeakSettings
from selftrain_jax.lab.plant.settings import PlantConfig, RecoveryConfig
from selftrain_jax.lab.settings import LabConfig
from selftrain_jax.sampling.settings import SampleSettings
from selftrain_jax.training.settings import TrainConfig

PLANTED_PROBES = "plant:probes.jsonl"
"""What `evaluate.probes` is where sequences are planted."""


@dataclasses.dataclass(frozen=True)
class ControlSettings:
    """A second training text at the same budget; exactly one setting says where it comes from.

    Attributes:
      texts: real texts, a file.
      source: another model, which is sampled.
      corpus: folder of a finished corpus: an imported one, or one that another run sampled.
    """

    texts: str = ""
    source: str = ""
    corpus: str = ""

    def __post_init__(self):
        if [self.texts, self.source, self.corpus].count("") != 2:
            raise InputError(
                f"control texts={self.texts!r}, source={self.source!r}, corpus={self.corpus!r}: set exactly one, a "
                "text file, a model or the folder of a finished corpus"
            )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, from BOS to report.

    Attributes:
      title: of the report; "" for `heading`, which follows the models.
      source: model that writes: a Hugging Face directory or name, or "lab:base" / "lab:other".
      corpus: folder of a finished corpus to train on instead of sampling the source; the main arm is then named
        "corpus" rather than "self", and `source` only says which student is meant where `student` is empty.
      student: model that is trained; "" means the source itself.
      revision: hub revision of source and student, for example "step143000"; "" is the default, as of all other models.
      lab: the generated world and its pre-trained models; None for a run on real models. Paths may start with "lab:".
      plant: sequences that are planted in the student before anything else; what is self-trained, and writes where
        `source` is the student, is then the planted model, and `evaluate.probes` are those of the sequences.
      recovery: how what was planted returns to each model by relearning, longer prefixes and sampling; None asks not.
      mesh, sample, audit, subset, train, evaluate: the stages.
      leaks: which known text is looked for in the text of every arm; by default none.
      controls: name -> control; "real" and "other" are the two that every claim needs.
    """

    title: str = ""
    source: str = ""
    corpus: str = ""
    student: str = ""
    revision: str = ""
    lab: LabConfig | None = None
    plant: PlantConfig | None = None
    recovery: RecoveryConfig | None = None
    mesh: MeshConfig = MeshConfig()
    sample: SampleSettings = SampleSettings()
    audit: AuditConfig = AuditConfig()
    subset: SubsetConfig = SubsetConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateSettings = EvaluateSettings()
    leaks: LeakSettings = LeakSettings()
    controls: Mapping[str, ControlSettings] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.source and not self.corpus:
            raise InputError("source is empty: set it to a Hugging Face model directory or name, or to 'lab:base'")
        if not self.source and not self.student:
            raise InputError(f"student is empty: set it to the model that is to be trained on corpus={self.corpus!r}")
        if taken := {"self", "base", "corpus", "twin"} & set(self.controls):
            raise InputError(f"controls cannot be named {taken.pop()!r}; use for example 'real' or 'other'")
        for name in self.controls:
            if not name.replace("_", "").isalnum():
                raise InputError(f"control name {name!r} must consist of letters, digits and underscores")
        if self.train.seed + self.subset.num_subsets > SEED_LIMIT:
            raise InputError(
                f"train seed={self.train.seed} must be at most {SEED_LIMIT - self.subset.num_subsets}: subset i of "
                f"{self.subset.num_subsets} is trained with seed + i"
            )
        if "real" in self.controls and (source := self.controls["real"].source):
            raise InputError(f"control 'real' is shown as real text, but is written by {source}: name it otherwise")
        other = self.controls.get("other")
        if other and other.source == self.source and other.source and not (self.corpus or self.plant):
            raise InputError(
                f"control 'other' is shown as another model's text, but is written by {self.source}, as the main text "
                "is: name another model"
            )
        if self.recovery is not None and self.plant is None:
            raise InputError("recovery needs plant: it asks for sequences of which is known what a model has read")
        if self.plant is not None:
            if self.evaluate.probes not in ("", PLANTED_PROBES):
                raise InputError(
                    f"evaluate probes={self.evaluate.probes!r} with plant: what is planted makes the probes; leave it "
                    "empty, or leave out plant"
                )
            planted = dataclasses.replace(self.evaluate, probes=PLANTED_PROBES, probes_chosen="planted")
            object.__setattr__(self, "evaluate", planted)
        wanted = {"leaks probes=True": self.leaks.probes, "evaluate discoverable": self.evaluate.discoverable}
        if lacking := [name for name, asked in wanted.items() if asked and not self.evaluate.probes]:
            raise InputError(f"{lacking[0]} needs evaluate.probes: name a file, or leave it out")

    @property
    def heading(self) -> str:
        """The title, or who is trained on whose text; of an absolute path its last name alone."""
        student, text = (
            os.path.basename(name.rstrip("/")) if os.path.isabs(name) else name
            for name in (self.student or self.source, self.corpus or self.source)
        )
        alone = not self.corpus and self.student in ("", self.source)
        made = f"Self-training of {student}" if alone else f"Training of {student} on text of {text}"
        return self.title or made + f", revision {self.revision}" * bool(self.revision)

    def lacks(self) -> list[str]:
        """What this run leaves out that claims need, one sentence each."""
        return lacks(self.evaluate, self.audit, "controls.real.texts" if not self.controls else "")


def lacks(evaluate: EvaluateSettings, audit: AuditConfig, control: str) -> list[str]:
    """What settings leave out that claims need, one sentence each, with the setting that brings it; `control`: that of
    a control where there is none, "" otherwise.
    """
    suites = {**evaluate.multiple_choice, **evaluate.minimal_pairs}
    measured = {
        "capability (evaluate.multiple_choice.NAME)": suites,
        "likelihood (evaluate.texts.NAME)": evaluate.texts,
        "memorization (evaluate.probes)": evaluate.probes,
    }
    missing = [what for what, given in measured.items() if not given]
    found = [f"nothing will be measured of {', '.join(missing)}"] if missing else []
    if suites and not audit.benchmarks:
        found.append("no benchmark is looked for in the training text (audit.benchmarks.NAME)")
    if control:
        found.append(f"there is no control, so that no change can be told from that by any other text ({control})")
    return found
