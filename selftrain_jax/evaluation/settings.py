"""What is measured on every model, as settings."""

import dataclasses
import itertools
import string
from typing import Any, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import COMPUTE_DTYPES, check_choice, check_ranges, look
from selftrain_jax.sampling.settings import SamplingConfig

SUITES = ("multiple_choice", "minimal_pairs", "last_words")
"""The settings that name suites, which measure capability."""


@dataclasses.dataclass(frozen=True)
class DiscoverableSettings:
    """Extraction by sampling (`evaluation.discoverable`).

    Attributes:
      samples: numbers of samples n; a probe counts where so many suffice. Groups are shown for the last of them.
      probability: p, the chance with which one of the samples is the suffix.
      temperature, top_k, top_p: how samples would be drawn; none is. The defaults are those of the paper.
    """

    samples: tuple[int, ...] = (1, 10, 100, 1000)
    probability: float = 0.5
    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 1.0

    def __post_init__(self):
        if not self.samples or any(b <= a for a, b in zip((0, *self.samples), self.samples)):
            raise InputError(f"evaluate discoverable.samples={self.samples} must rise, and start at 1 or more")
        check_ranges("evaluate", self, {"probability": (0, 1)}, excluded=(0, 1))
        self.sampling()

    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass(frozen=True)
class LeakSettings:
    """How much of each text that is trained on, above all of what models wrote, repeats known text
    (`evaluation.leaks`). Without references and probes nothing is looked for.

    Attributes:
      references: name -> text set, or plain text file, in which documents' longest runs are looked for.
      probes: look for the sequences of `evaluate.probes`, too, by group.
      least_tokens, least_characters: the run from which on a document leaks; 0 leaves the unit out. Where a
        probe is shorter, the shortest of its group is that run.
      show: documents that are shown, of each reference and group.
    """

    references: Mapping[str, str] = dataclasses.field(default_factory=dict)
    probes: bool = False
    least_tokens: int = 50
    least_characters: int = 200
    show: int = 10

    def __post_init__(self):
        check_ranges("leaks", self, dict.fromkeys(("least_tokens", "least_characters", "show"), 0))
        if not self.least_tokens and not self.least_characters:
            raise InputError("leaks least_tokens=0 and least_characters=0 leave nothing to look for: set one of them")
        for name in self.references:
            if not name or not name.isprintable():
                raise InputError(f"leaks references: {name!r} must be a name of printable characters")
            if name == "probes":
                raise InputError("leaks references: 'probes' is what leaks.probes looks for; take another name")

    @property
    def wanted(self) -> bool:
        return bool(self.references) or self.probes


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is measured on every model.

    Attributes:
      texts: name -> text set (rows with "text", or a plain text file), for the likelihood.
      multiple_choice: name -> rows with "question", "choices", "gold".
      minimal_pairs: name -> rows with "sentence_good", "sentence_bad".
      last_words: name -> rows with "text", whose last word is to be given (LAMBADA).
      probes: rows with "prefix", "suffix" (token ids), "group"; "" measures no extraction.
      probes_chosen: how the probes were chosen: "planted", "emitted" (the base model emits them), "random", "unknown".
      rules: how multiple choice is decided, "acc" (highest log-probability), "acc_norm" (highest per character) and
        "acc_bytes" (highest per UTF-8 byte).
      template: prompt of a multiple-choice question; a space and the choice follow it.
      add_bos: put BOS before questions, probe prefixes and what membership attacks read; "auto": where the model's
        tokenizer puts it before a text by itself. Texts and minimal pairs begin with it always.
      held_out_ngram: a probe is held out when no run of so many words of its text stands in any training subset but
        that of a control named "shuffled". Extraction is also given for 13 words and for the whole suffix.
      max_unknown: largest share of characters of a text set or suite that the model's tokenizer may leave unread, and
        of items whose right answer it reads like a wrong one.
      limit: items of every suite, evenly spread over the whole; 0 takes all.
      max_chars: characters of every text set, from its beginning on; 0 takes all.
      max_length: tokens that the model reads at once, of `texts` and of prompts, where its context is longer; 0 sets no
        limit.
      batch_size: sequences scored at once.
      dtype: compute dtype; published Pythia figures are only reproduced in float32.
      context_len: tokens that every scored token of `texts` has before it, at least; more is slower
        (`rolling_windows`).
      suffix_lengths: extraction is also given for that many first tokens of the suffix, at no cost.
      offset_edges: token offsets at which a new group begins; extraction is also given by the probes' distance from the
        start of their training sequence. Needs probes with "offset".
      free_running: decode greedily after every prefix, for the graded score and the approximate match; several times
        the cost of extraction.
      nonmembers: group of probes that the base model's training text does not hold, for example "repeats=0": all others
        count as members, membership attacks are run on them, and their exposure among the group is given; "" does
        neither. One more pass over the probes.
      reference: a model with the same tokenizer whose training text holds neither group, for the reference attack; a
        directory, a hub name, or "lab:other". It is held beside the model; one more pass, by it. Needs `nonmembers`.
      recall_shots: so many of the non-members stand before every probe, for the attack ReCaLL, and are left out of it;
        one more pass, over sequences that are longer by theirs. Needs `nonmembers`.
      discoverable: extraction by sampling, settings of its own ({} for the defaults); None leaves it out. One more pass
        over the probes.
      curve_points: how often capability and extraction are measured during training, ever further apart; "epochs":
        after every epoch; 0: only after training.
      curve_items: items of every suite, windows of every text set, and probes, that those measurements take, evenly
        spread over the whole.
    """

    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    multiple_choice: Mapping[str, str] = dataclasses.field(default_factory=dict)
    minimal_pairs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    last_words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    probes: str = ""
    probes_chosen: str = "unknown"
    rules: tuple[str, ...] = ("acc", "acc_norm")
    template: str = "Question: {question}\nAnswer:"
    add_bos: bool | str = "auto"
    held_out_ngram: int = 8
    max_unknown: float = 0.1
    limit: int = 0
    max_chars: int = 0
    max_length: int = 0
    batch_size: int = 64
    dtype: str = "float32"
    context_len: int = 1
    suffix_lengths: tuple[int, ...] = ()
    offset_edges: tuple[int, ...] = ()
    free_running: bool = False
    nonmembers: str = ""
    reference: str | None = None
    recall_shots: int | None = None
    discoverable: DiscoverableSettings | None = None
    curve_points: int | str = 0
    curve_items: int = 256

    def __post_init__(self):
        positive = dict.fromkeys(("held_out_ngram", "batch_size", "context_len", "curve_items"), 1)
        limits = dict.fromkeys(("limit", "max_chars", "max_length"), 0)
        check_ranges("evaluate", self, positive | limits | {"max_unknown": (0, 1)})
        if isinstance(self.curve_points, str):
            check_choice("evaluate", self, "curve_points", ("epochs",))
        else:
            check_ranges("evaluate", self, {"curve_points": 0})
        check_choice("evaluate", self, "probes_chosen", ("planted", "emitted", "random", "unknown"))
        check_choice("evaluate", self, "dtype", COMPUTE_DTYPES)
        check_choice("evaluate", self, "add_bos", ("auto", True, False))
        if self.recall_shots is not None:
            check_ranges("evaluate", self, {"recall_shots": 1})
        for name in ("reference", "recall_shots"):
            if getattr(self, name) and not self.nonmembers:
                raise InputError(f"evaluate {name}={getattr(self, name)!r} needs nonmembers, the group to tell from")
        for name in ("suffix_lengths", "offset_edges"):
            values = getattr(self, name)
            if any(b <= a for a, b in zip((0, *values), values)):
                raise InputError(f"evaluate {name}={values} must rise, and start at 1 or more")
        suites = [*self.multiple_choice, *self.minimal_pairs, *self.last_words]
        for name in (*self.texts, *suites):
            if not name or not name.isprintable() or name.endswith((":acc_norm", ":acc_bytes")):
                raise InputError(
                    f"evaluate name {name!r} of a text set or suite must consist of printable characters and not end "
                    "in a rule such as ':acc_norm'"
                )
        for names in ([*self.texts], suites):
            looks = dict(zip(map(look, names), names))
            if alike := [name for name in names if looks[look(name)] != name]:
                raise InputError(f"evaluate names {alike[0]!r} and {looks[look(alike[0])]!r} look alike; rename one")
        for (a, one), (b, other) in itertools.combinations(((k, getattr(self, k)) for k in SUITES), 2):
            if twice := one.keys() & other.keys():
                raise InputError(f"evaluate {a} and {b} both name {min(twice)!r}; rename one of them")
        if not self.rules or set(self.rules) - {"acc", "acc_norm", "acc_bytes"}:
            raise InputError(f"evaluate rules={self.rules} must be some of 'acc', 'acc_norm' and 'acc_bytes'")
        try:
            fields = {field[1:] for field in string.Formatter().parse(self.template)}
        except ValueError:
            fields = set()
        if fields - {(None, None, None)} != {("question", "", None)}:
            raise InputError(
                f"evaluate template={self.template!r} must hold {{question}}, which stands for the whole question, and "
                "no other field; braces that the prompt shall show are doubled"
            )

    def stage_settings(self) -> dict[str, Any]:
        """What decides the result of an evaluation after training."""
        other = ("curve_points", "curve_items", "max_unknown")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in other}

    def for_curve(self) -> "EvaluateSettings":
        """What is measured during training: the suites by the rule that counts in means over suites, extraction and
        windows of the texts, nothing that costs more."""
        rule = "acc" if "acc" in self.rules else self.rules[0]
        dear = dict.fromkeys(("reference", "recall_shots", "discoverable"))
        return dataclasses.replace(self, free_running=False, nonmembers="", rules=(rule,), **dear)

    def files(self) -> dict[str, str]:
        """Every file that is read, by the setting that names it."""
        named = {f"{kind}.{name}": path for kind in ("texts", *SUITES) for name, path in getattr(self, kind).items()}
        return named | ({"probes": self.probes} if self.probes else {})
