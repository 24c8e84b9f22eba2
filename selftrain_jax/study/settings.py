"""The settings of a study."""

import dataclasses
import itertools
from typing import Iterator, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import check_ranges, check_seed
from selftrain_jax.data.settings import AuditConfig, SubsetConfig
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.settings import EvaluateSettings, LeakSettings
from selftrain_jax.lab.settings import LineageConfig
from selftrain_jax.report.study_data import RELATIONS
from selftrain_jax.run.settings import lacks
from selftrain_jax.sampling.settings import SampleSettings
from selftrain_jax.training.settings import TrainConfig

MODES = ("replace", "accumulate")
DATA = "data:"
"""Begins the name of a file in the folder `StudyConfig.data`."""


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """One model that takes part, and where it comes from; a lab's model needs neither path nor corpus.

    Attributes:
      path: Hugging Face directory or hub name.
      revision: hub revision.
      corpus: folder of a finished corpus that stands for this source: an imported one, of a model that cannot be
        sampled here.
      start: what the documents that it writes begin after, where that is not `sample.start`.
      family: models of one family share tokenizer and architecture.
      recipe: models of one family and one recipe are a lineage: the same data in the same order, in several sizes.
    """

    path: str = ""
    revision: str = ""
    corpus: str = ""
    start: str | int | tuple[int | str, ...] = ""
    family: str = ""
    recipe: str = ""


@dataclasses.dataclass(frozen=True)
class ProxySettings:
    """What may predict which text helps; all of it is measured on the untouched student.

    Attributes:
      num_documents: of every corpus, evenly spread; and texts of every benchmark. 0 measures no proxy.
      gradient_rows: packed rows of corpus, and of real text, whose gradients are compared.
      sentence_encoder: name of a model of the `sentence_transformers` library for one more similarity; "" for none.
    """

    num_documents: int = 512
    gradient_rows: int = 64
    sentence_encoder: str = ""

    def __post_init__(self):
        check_ranges("proxies", self, {"num_documents": 0, "gradient_rows": 1})


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Tasks of lm-evaluation-harness (extra `eval`) on every untouched and every trained student, beside the suites of
    `evaluate`.

    Attributes:
      names: as of `selftrain evaluate --tasks`, groups such as "paper-zero-shot" among them; empty for none.
      limit: the first items of every task; 0 takes all.
      include_path: folder of YAML task files of your own.
      confirm_run_unsafe_code: whether tasks may run code that the model wrote, and task files theirs.
    """

    names: tuple[str, ...] = ()
    limit: int = 0
    include_path: str = ""
    confirm_run_unsafe_code: bool = False

    def __post_init__(self):
        check_ranges("tasks", self, {"limit": 0})


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """The loop repeated on its own output.

    Attributes:
      students: which models; each must be a source, too.
      count: generations, the first being the ordinary self-training; 1 repeats nothing.
      modes: "replace": generation g trains on the text of generation g - 1 alone; "accumulate": on that of all before
        it, at the same budget.
    """

    students: tuple[str, ...] = ()
    count: int = 3
    modes: tuple[str, ...] = MODES

    def __post_init__(self):
        check_ranges("generations", self, {"count": 1})
        if not set(self.modes) <= set(MODES):
            raise InputError(f"generations modes={self.modes} must be some of {', '.join(MODES)}")


SEEDS_APART = 1000
"""Generation g + 1 samples with the seed of generation g and so many more."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """One training budget and learning rate; `name` is "" where the study has no other."""

    name: str
    num_tokens: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Every student is trained on the text of every source, at every condition, for every seed.

    Attributes:
      title: heading of the page.
      models: name -> model; letters, digits and underscores.
      students: the models that are trained.
      sources: the models that write; empty for each student its own text alone.
      lab: the generated worlds and lineages; None for a study of real models. Paths may start with "lab:" then.
      seeds: replicates. Each has its own samples, subsets and order of training; in a lab also its own world and
        models.
      one_corpus: whether all seeds draw their subsets from the first one's corpus of each source, as the paper does;
        intervals are then over subsets and orders of training. Not in a lab, whose seeds have models of their own.
      temperatures: of sampling; empty keeps that of `sample`.
      budgets: tokens per subset; empty keeps that of `subset`.
      learning_rates: empty keeps that of `train`.
      data: the folder of the files whose names here begin with "data:".
      real: text file of the control "real"; "" for none.
      shuffled: whether there is the control "shuffled", too: the same with the words of each text in random order.
      fresh: whether there is the control "real+fresh", too, in a generated world: real text, and among it as many
        random sequences that no model has seen as the student's own text holds sequences of the planted kind.
      mesh, sample, audit, subset, train, evaluate, leaks: those of every run; the seed is added to theirs.
      tasks, proxies, generations: see there.
    """

    title: str = "Who should learn from whom?"
    models: Mapping[str, ModelSettings] = dataclasses.field(default_factory=dict)
    students: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    lab: LineageConfig | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    one_corpus: bool = False
    temperatures: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = ()
    data: str = ""
    real: str = ""
    shuffled: bool = True
    fresh: bool = False
    mesh: MeshConfig = MeshConfig()
    sample: SampleSettings = SampleSettings()
    audit: AuditConfig = AuditConfig()
    subset: SubsetConfig = SubsetConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateSettings = EvaluateSettings()
    leaks: LeakSettings = LeakSettings()
    tasks: TaskSettings = TaskSettings()
    proxies: ProxySettings = ProxySettings()
    generations: GenerationSettings = GenerationSettings()

    def __post_init__(self):
        for name in self.models:
            if not name.replace("_", "").isalnum() or name in _RESERVED:
                raise InputError(
                    f"model name {name!r} must consist of letters, digits and underscores, and not be one of "
                    f"{', '.join(_RESERVED)}"
                )
        for kind in ("students", "sources", "seeds", "temperatures", "budgets", "learning_rates"):
            values = getattr(self, kind)
            if len({f"{v:g}" if isinstance(v, float) else v for v in values}) < len(values):
                raise InputError(f"{kind}={values} names one of them twice (in six digits, as folders are named)")
            if not values and kind in ("students", "seeds"):
                raise InputError(f"{kind} is empty: name at least one")
        for seed in self.seeds:
            check_seed("study", seed)
        repeated = self.generations.students
        turns = {seed + SEEDS_APART * turn for seed in self.seeds for turn in range(1, self.generations.count)}
        if repeated and (shared := turns & set(self.seeds)):
            raise InputError(
                f"seeds={self.seeds}: {min(shared)} is that of another one's later generation, which samples with "
                f"{SEEDS_APART} more; choose seeds that lie nearer to each other"
            )
        named = {"students": self.students, "sources": self.sources, "generations.students": repeated}
        for kind, names in named.items():
            for name in names:
                if name not in self.models:
                    raise InputError(f"{kind} names {name!r}, which is none of models: {', '.join(self.models)}")
        for name in self.students:
            if self.models[name].corpus:
                raise InputError(f"students names {name!r}, of which there is only a corpus: name a model to train")
        for name in repeated:
            if name not in self.students or name not in self.sources_of(name):
                raise InputError(f"generations.students names {name!r}, which must be both a student and a source")
        for name, model in self.models.items():
            in_lab = self.lab is not None and name in self.lab.models
            if [bool(model.path), bool(model.corpus), in_lab].count(True) != 1:
                raise InputError(f"models.{name} needs one of path, corpus and an entry in lab.models")
            same = [other for other in self.models.values() if other.family == model.family]
            if not model.family or (len(same) > 1 and not model.recipe):
                raise InputError(
                    f"models.{name} needs a family, and a recipe where another model is of its family: they say "
                    "how source and student are related"
                )
        if self.evaluate.reference:
            raise InputError(
                f"evaluate reference={self.evaluate.reference!r} is for runs: the students of a study read different "
                "tokens; leave it out"
            )
        if self.lab is None:
            for setting, value in self.files().items():
                if value.startswith("lab:"):
                    raise InputError(f"setting {setting}={value!r} needs a lab, but the config has none (lab=None)")
        elif self.one_corpus:
            raise InputError("one_corpus=True needs models that are the same in every seed, which a lab's are not")
        if self.fresh and (self.lab is None or self.lab.text is not None or not self.real):
            raise InputError(
                "fresh=True needs a generated world (lab.world) and real text (real): set both, or fresh=False"
            )
        for name in self.students if self.fresh else ():
            if name not in self.sources_of(name):
                raise InputError(f"fresh=True counts in the student's own text: name {name!r} in sources")
        if any(t < 0 for t in self.temperatures):
            raise InputError(f"temperatures={self.temperatures} must not be negative")

    def lacks(self) -> list[str]:
        """What this study leaves out that claims need, one sentence each."""
        return lacks(self.evaluate, self.audit, "" if self.real else "real")

    def files(self) -> dict[str, str]:
        """Every file that the settings name, by setting."""
        named = {f"audit.benchmarks.{name}": path for name, path in self.audit.benchmarks.items()}
        named |= {f"evaluate.{name}": path for name, path in self.evaluate.files().items()}
        named |= {f"leaks.references.{name}": path for name, path in self.leaks.references.items()}
        return named | ({"real": self.real} if self.real else {})

    def conditions(self) -> Iterator[Condition]:
        """Every pair of budget and learning rate, named by what differs."""
        budgets = self.budgets or (self.subset.num_tokens,)
        rates = self.learning_rates or (self.train.optimizer.learning_rate,)
        for tokens, rate in itertools.product(budgets, rates):
            parts = [f"{tokens} tokens"] * (len(budgets) > 1) + [f"lr {rate:g}"] * (len(rates) > 1)
            yield Condition(", ".join(parts), tokens, rate)

    def sources_of(self, student: str) -> tuple[str, ...]:
        """The models whose text the student is trained on; its own first, where it is one of them."""
        return tuple(sorted(self.sources or (student,), key=lambda name: name != student))

    @property
    def writers(self) -> tuple[str, ...]:
        """Every model whose text some student is trained on."""
        return self.sources or self.students

    def relation(self, source: str, student: str) -> str:
        """One of `RELATIONS`."""
        a, b = self.models[source], self.models[student]
        if source == student:
            return RELATIONS[0]
        if a.family != b.family:
            return RELATIONS[3]
        return RELATIONS[1] if a.recipe == b.recipe else RELATIONS[2]


_RESERVED = ("none", "noise", "real", "shuffled", "real_fresh", "self", "base", "corpus")
