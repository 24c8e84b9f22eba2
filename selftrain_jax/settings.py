"""The settings of a run: one frozen dataclass per stage, built from the plain dict that a config file gives."""

import dataclasses
import difflib
import types
import typing
from typing import Any, Mapping

from selftrain_jax.data.audit import AuditConfig
from selftrain_jax.data.subset import SubsetConfig
from selftrain_jax.errors import InputError
from selftrain_jax.lab.pretrain import LabConfig
from selftrain_jax.parallel import MeshConfig
from selftrain_jax.sampling.warp import SamplingConfig
from selftrain_jax.training.loop import TrainConfig


def _check_dtype(section: str, dtype: str) -> None:
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"{section} dtype={dtype!r} must be 'float32' or 'bfloat16'")


@dataclasses.dataclass(frozen=True)
class SampleSettings(SamplingConfig):
    """How many documents are drawn, and in what portions. Only the first two change what is drawn.

    Attributes:
      num_samples: documents in the corpus.
      seed: the corpus's random key.
      batch_size: documents drawn side by side; "auto" takes as many as the device memory holds.
      shard_size: documents per corpus shard; a killed run loses what it was drawing and the shard not yet full.
      dtype: of weights, compute and cache, "float32" or "bfloat16"; "auto" is bfloat16 on accelerators and float32 on
        CPUs. Logits and log-probabilities are fp32 always.
    """

    num_samples: int = 20_000
    seed: int = 0
    batch_size: int | str = "auto"
    shard_size: int = 1024
    dtype: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_samples", "shard_size"):
            if getattr(self, name) < 1:
                raise InputError(f"sample {name}={getattr(self, name)} must be at least 1")
        if self.batch_size != "auto" and (isinstance(self.batch_size, str) or self.batch_size < 1):
            raise InputError(f"sample batch_size={self.batch_size!r} must be at least 1, or 'auto'")
        if self.dtype != "auto":
            _check_dtype("sample", self.dtype)

    def sampling(self) -> SamplingConfig:
        """The part that the decode loop compiles for."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SamplingConfig)})


@dataclasses.dataclass(frozen=True)
class AuditSettings(AuditConfig):
    """Attributes: benchmarks: name -> JSON-lines file of texts that no training document may overlap with."""

    benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SubsetSettings(SubsetConfig):
    """Attributes: retokenize: train on the corpus's text rather than its token ids, for a student of another family; "auto"
    does so where the tokenizers differ."""

    num_tokens: int = 5_000_000
    num_subsets: int = 3
    retokenize: bool | str = False

    def __post_init__(self):
        super().__post_init__()
        if self.retokenize not in (True, False, "auto"):
            raise InputError(f"subset retokenize={self.retokenize!r} must be True, False or 'auto'")


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
                f"control texts={self.texts!r}, source={self.source!r}, corpus={self.corpus!r}: set exactly one, a text "
                "file, a model or the folder of a finished corpus"
            )


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is measured on every model.

    Attributes:
      texts: name -> text set (JSON lines with "text", or a plain text file), for the likelihood.
      multiple_choice: name -> JSON lines with "question", "choices", "gold".
      minimal_pairs: name -> JSON lines with "sentence_good", "sentence_bad".
      probes: JSON lines with "prefix", "suffix" (token ids), "group"; "" measures no extraction.
      probes_chosen: how the probes were chosen: "planted", "emitted" (the base model emits them), "random", "unknown".
      rules: how multiple choice is decided, "acc" (highest log-probability), "acc_norm" (highest per character) and
        "acc_bytes" (highest per UTF-8 byte).
      template: prompt of a multiple-choice question; a space and the choice follow it.
      add_bos: put BOS before questions and probe prefixes (for models whose documents start with it).
      held_out_ngram: a probe is held out when no such n-gram of it occurs in any training subset. Extraction is also given
        for 13-grams and for the whole suffix.
      batch_size: sequences scored at once.
      dtype: compute dtype; published Pythia figures are only reproduced in float32.
      context_len: tokens that every scored token of `texts` has before it, at least; more is slower (`rolling_windows`).
      suffix_lengths: extraction is also given for that many first tokens of the suffix, at no cost.
      offset_edges: token offsets at which a new group begins; extraction is also given by the probes' distance from the
        start of their training sequence. Needs probes with "offset".
      free_running: decode greedily after every prefix, for the graded score and the approximate match; several times the
        cost of extraction.
      nonmembers: group of probes that the base model's training text does not hold, for example "repeats=0": all others
        count as members, and membership attacks are run on them; "" runs none. One more pass over the probes.
      curve_points: how often capability and extraction are measured during training, ever further apart; 0: only after it.
      curve_items: items of every suite, and probes, that those measurements take, evenly spread over the whole.
    """

    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    multiple_choice: Mapping[str, str] = dataclasses.field(default_factory=dict)
    minimal_pairs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    probes: str = ""
    probes_chosen: str = "unknown"
    rules: tuple[str, ...] = ("acc", "acc_norm")
    template: str = "Question: {question}\nAnswer:"
    add_bos: bool = False
    held_out_ngram: int = 8
    batch_size: int = 64
    dtype: str = "float32"
    context_len: int = 1
    suffix_lengths: tuple[int, ...] = ()
    offset_edges: tuple[int, ...] = ()
    free_running: bool = False
    nonmembers: str = ""
    curve_points: int = 0
    curve_items: int = 256

    def __post_init__(self):
        if self.curve_points < 0:
            raise InputError(f"evaluate curve_points={self.curve_points} must be 0 (no curve) or positive")
        for name in ("held_out_ngram", "batch_size", "context_len", "curve_items"):
            if getattr(self, name) < 1:
                raise InputError(f"evaluate {name}={getattr(self, name)} must be at least 1")
        for name in ("suffix_lengths", "offset_edges"):
            values = getattr(self, name)
            if any(b <= a for a, b in zip((0, *values), values)):
                raise InputError(f"evaluate {name}={values} must rise, and start at 1 or more")
        if not self.rules or set(self.rules) - {"acc", "acc_norm", "acc_bytes"}:
            raise InputError(f"evaluate rules={self.rules} must be some of 'acc', 'acc_norm' and 'acc_bytes'")
        if "{question}" not in self.template:
            raise InputError(f"evaluate template={self.template!r} must contain {{question}}")
        if self.probes_chosen not in ("planted", "emitted", "random", "unknown"):
            raise InputError(
                f"evaluate probes_chosen={self.probes_chosen!r} must be 'planted', 'emitted', 'random' or 'unknown'"
            )
        _check_dtype("evaluate", self.dtype)

    def stage_settings(self) -> dict[str, Any]:
        """What decides the result of an evaluation after training. Later additions are left out at their defaults: the
        settings of runs from before there was such a thing stay what they were."""
        added = ("context_len", "suffix_lengths", "offset_edges", "free_running", "nonmembers")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        settings = dataclasses.asdict(self)
        curve = ("curve_points", "curve_items")
        return {name: v for name, v in settings.items() if name not in curve and (name not in added or v != defaults[name])}

    def for_curve(self) -> "EvaluateSettings":
        """What is measured during training: the suites and extraction, nothing that costs more."""
        return dataclasses.replace(self, texts={}, free_running=False, nonmembers="", rules=self.rules[:1])

    def files(self) -> dict[str, str]:
        """Every file that is read, by the setting that names it."""
        named = {f"{kind}.{name}": path for kind in ("texts", "multiple_choice", "minimal_pairs")
                 for name, path in getattr(self, kind).items()}  # fmt: skip
        return named | ({"probes": self.probes} if self.probes else {})


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, from BOS to report.

    Attributes:
      title: heading of the report.
      source: model that writes: a Hugging Face directory or name, or "lab:base" / "lab:other".
      corpus: folder of a finished corpus to train on instead of sampling the source; the main arm is then named "corpus"
        rather than "self", and `source` only says which student is meant where `student` is empty.
      student: model that is trained; "" means the source itself.
      revision: hub revision of source and student, for example "step143000"; "" is the default.
      lab: the generated world and its pre-trained models; None for a run on real models. Paths may start with "lab:".
      mesh, sample, audit, subset, train, evaluate: the stages.
      controls: name -> control; "real" and "other" are the two that every claim needs.
    """

    title: str = "Unconditional self-training"
    source: str = ""
    corpus: str = ""
    student: str = ""
    revision: str = ""
    lab: LabConfig | None = None
    mesh: MeshConfig = MeshConfig()
    sample: SampleSettings = SampleSettings()
    audit: AuditSettings = AuditSettings()
    subset: SubsetSettings = SubsetSettings()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateSettings = EvaluateSettings()
    controls: Mapping[str, ControlSettings] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.source and not self.corpus:
            raise InputError("source is empty: set it to a Hugging Face model directory or name, or to 'lab:base'")
        if not self.source and not self.student:
            raise InputError(f"student is empty: set it to the model that is to be trained on corpus={self.corpus!r}")
        if taken := {"self", "base", "corpus"} & set(self.controls):
            raise InputError(f"controls cannot be named {taken.pop()!r}; use for example 'real' or 'other'")
        for name in self.controls:
            if not name.replace("_", "").isalnum():
                raise InputError(f"control name {name!r} must consist of letters, digits and underscores")


def build(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass `cls` with `values`; nested dataclasses and mappings of dataclasses are built from dicts.

    Raises:
      InputError: an unknown setting (with the nearest known one) or a value of the wrong type, named by its full path.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"setting {where or 'config'}={values!r} must be a group of settings")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known))}"
            raise InputError(f"unknown setting {_join(where, name)}; {advice}")
    arguments = {name: _convert(hints[name], value, _join(where, name)) for name, value in values.items()}
    try:
        return cls(**arguments)
    except TypeError as e:
        raise InputError(f"settings of {where or 'config'}: {e}") from None


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, where)
            except InputError:
                continue
        return _convert(options[-1], value, where)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"setting {where}={value!r} must be a group of settings")
        return {str(name): _convert(arguments[1], item, _join(where, name)) for name, item in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"setting {where}={value!r} must be a list")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InputError(f"setting {where}={value!r} must be of type {getattr(hint, '__name__', hint)}")
    return value
