"""What a run consists of, by name, and where it lies.

An *arm* is one training text with everything made from it: the main one, "self" (the source model's own documents) or
"corpus" (those of `config.corpus`), and a control for every entry of `config.controls`. Each arm has
`subset.num_subsets` subsets, and each subset trains one model.
"""

import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING, Any, Callable, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import Fingerprints, fingerprint
from selftrain_jax.core.storage import CHECKPOINTS, Workdir
from selftrain_jax.data.clean import TrainingText
from selftrain_jax.data.corpus import corpus_fingerprint
from selftrain_jax.models.files.fingerprints import model_inputs, vocabulary_input
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.run.settings import ControlSettings, RunConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

LAB, PLANT = MADE = ("lab:", "plant:")
"""Begin the names of models and files that the lab, and the stage `plant`, make."""
PLANTED, TWIN = f"{PLANT}planted", f"{PLANT}twin"
ENDS = "{}'s BOS and EOS"


SHUFFLED = "shuffled"
"""The control of real text with its words in random order: by chance alone it would take probes out of the held-out
set, and it repeats none."""


@dataclasses.dataclass
class RunNames:
    """The names and places of the run of `config` in `workdir`.

    A workdir that is in a bucket comes as `storage.Workdir`; `workdir` is then its copy on this machine, in which
    stages work, and `home` the folder itself. On disk both are the same.
    """

    config: RunConfig
    workdir: Workdir | pathlib.Path
    command: str = ""
    reported: Any = None
    """The `ReportData` of the report that was written last."""

    def __post_init__(self):
        self.place = self.workdir if isinstance(self.workdir, Workdir) else Workdir(self.workdir)
        self.home, self.workdir = self.place.path, self.place.local
        if self.config.lab is None:
            for setting, value in self.references().items():
                if value.startswith(LAB):
                    raise InputError(f"setting {setting}={value!r} needs a lab, but the config has none (lab=None)")

    @property
    def main(self) -> str:
        """The arm that the controls are compared with."""
        return "corpus" if self.config.corpus else "self"

    @property
    def arms(self) -> dict[str, ControlSettings]:
        """Arm name -> where its text comes from."""
        corpus = self.config.corpus
        source = self.student if self.config.source == self.untouched else self.config.source
        main = ControlSettings(corpus=corpus) if corpus else ControlSettings(source=source)
        return {self.main: main, **self.config.controls}

    @property
    def models(self) -> dict[str, tuple[str, int] | None]:
        """Evaluated model -> (arm, subset), None for the student before it is self-trained, and for its twin."""
        trained = {f"{arm}-{k}": (arm, k) for k in range(self.config.subset.num_subsets) for arm in self.arms}
        return {"base": None, **({"twin": None} if self.config.plant else {}), **trained}

    @property
    def untouched(self) -> str:
        """The student as it comes, before anything is planted in it."""
        return self.config.student or self.config.source

    @property
    def student(self) -> str:
        return PLANTED if self.config.plant else self.untouched

    def references(self) -> dict[str, str]:
        """Every model and file that the config names, by setting."""
        config = self.config
        named = {"corpus": config.corpus} if config.corpus else {"source": config.source}
        named["student"] = self.untouched
        if config.plant:
            named |= {f"plant.{n}": path for n in ("text", "passages") if (path := getattr(config.plant, n))}
        named |= {f"audit.benchmarks.{name}": path for name, path in config.audit.benchmarks.items()}
        named |= {f"evaluate.{name}": path for name, path in config.evaluate.files().items()}
        if config.recovery and config.recovery.text:
            named["recovery.text"] = config.recovery.text
        named |= {"evaluate.reference": config.evaluate.reference} if config.evaluate.reference else {}
        named |= {f"leaks.references.{name}": path for name, path in config.leaks.references.items()}
        for name, control in config.controls.items():
            values = dataclasses.asdict(control)
            named |= {f"controls.{name}.{field}": value for field, value in values.items() if value}
        return named

    @functools.cached_property
    def mesh(self) -> "Mesh":
        """All devices, made when a stage first needs them."""
        from selftrain_jax.distributed.mesh import make_mesh

        return make_mesh(self.config.mesh)

    @functools.cached_property
    def local_mesh(self) -> "Mesh":
        """Where each process of a job samples and evaluates by itself; `mesh` in a job of one."""
        from selftrain_jax.distributed.mesh import local_mesh

        return local_mesh(self.mesh)

    def path(self, reference: str) -> pathlib.Path:
        """A file named in the config; "lab:suites/x.jsonl" lies in the lab's world, "lab:probes.jsonl" beside the
        student, in whose ids it is, where the lab makes that."""
        if reference.startswith(LAB):
            file, of_lab = reference.removeprefix(LAB), self.untouched.startswith(LAB)
            folder = self.untouched.removeprefix(LAB) if of_lab and file == "probes.jsonl" else "world"
            return self.workdir / "lab" / folder / file
        if reference.startswith(PLANT):
            return self.workdir / "plant" / "text" / reference.removeprefix(PLANT)
        return pathlib.Path(reference)

    def model_path(self, reference: str) -> pathlib.Path:
        """The directory of a model named in the config; "lab:base" is the lab's base model."""
        if reference.startswith(LAB):
            return self.workdir / "lab" / reference.removeprefix(LAB) / "model"
        if reference.startswith(PLANT):
            return self.workdir / "plant" / reference.removeprefix(PLANT) / "model"
        own = reference in (self.config.source, self.config.student) and not pathlib.Path(reference).is_dir()
        return resolve_model(reference, self.config.revision or None if own else None)

    def corpus_path(self, arm: str) -> pathlib.Path:
        """The corpus that an arm's documents are in before the audit."""
        return pathlib.Path(self.arms[arm].corpus or self.workdir / "sample" / arm / "corpus")

    def training_text(self, arm: str) -> TrainingText:
        """Where an arm's documents are before the audit."""
        texts = self.arms[arm].texts
        return TrainingText(texts=self.path(texts)) if texts else TrainingText(corpus=self.corpus_path(arm))

    def checkpoints(self, model: str) -> pathlib.PurePath:
        """Where the checkpoints of a trained model are."""
        return self.home / "train" / model / CHECKPOINTS

    def saving(self, stage: str) -> dict[str, Any]:
        """Arguments of `training.loop.train`: where checkpoints go, and what must be safe before one counts."""
        return {
            "checkpoints": self.home / stage / CHECKPOINTS,
            "before_save": functools.partial(self.place.send, stage),
        }

    # What a stage depends on: stages of the lab for what these make, fingerprints for everything else.

    def lab_stages(self, *references: str) -> list[str]:
        """The stages that make what `references` name of the lab, or of what is planted."""
        found = set()
        for folder, colon, name in (reference.partition(":") for reference in references):
            if f"{folder}{colon}" == LAB:
                found.add(f"lab/{name if name in ('base', 'other') else 'world'}")
            elif f"{folder}{colon}" == PLANT:
                found.add(f"plant/{name if f'{PLANT}{name}' in (PLANTED, TWIN) else 'text'}")
        return sorted(found)

    def file_inputs(self, references: Mapping[str, str], corpus: str = "") -> Fingerprints:
        """Those of the files, and the corpus, that the run does not make."""
        found = Fingerprints.of_files({n: path for n, path in references.items() if path and not path.startswith(MADE)})
        return found | Fingerprints({"corpus": lambda: corpus_fingerprint(corpus)} if corpus else {})

    def model_input(self, name: str, reference: str) -> Fingerprints:
        return self._of_model(reference, functools.partial(model_inputs, name))

    def vocabulary_input(self, name: str, reference: str) -> Fingerprints:
        return self._of_model(reference, functools.partial(vocabulary_input, name))

    def rows_input(self, name: str, reference: str) -> Fingerprints:
        """What decides the rows that are packed for a model made elsewhere: its vocabulary, and by the name `ENDS` what
        it begins and ends documents with."""

        def ends(find: Callable[[], pathlib.Path]) -> Fingerprints:
            def look() -> str:
                config = load_config(find())
                return fingerprint([config.bos_token_id, config.eos_token_id])

            return vocabulary_input(name, find) | Fingerprints({ENDS.format(name): look})

        return self._of_model(reference, ends)

    def _of_model(self, reference: str, look: Callable[[Callable[[], pathlib.Path]], Fingerprints]) -> Fingerprints:
        return Fingerprints({}) if reference.startswith(MADE) else look(lambda: self.model_path(reference))
