"""A metric as a typed key: its name in files, its words for people, its unit and its place in a table."""

import collections
import dataclasses
import re
from typing import Any, Iterable, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import look

RUN = "run"
Row = Mapping[str, Any]
"""A row of a table: column -> value."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of metric; a unit that begins with "%" says that it is a rate: a fraction in [0, 1], shown in percent."""

    unit: str = ""
    explanation: str = ""
    words: str = ""  # where they are not the kind itself
    term: str = ""  # what the explanation explains, where that is not `words`
    short: str = ""  # `words` where there is little room
    decimals: int = 3  # of what is no rate
    of_probes: bool = False  # without an item, a group or the like it is of all probes

    @property
    def is_rate(self) -> bool:
        return self.unit.startswith("%")


KINDS = {
    "extraction": Kind("% of probes", "Verbatim extraction; lower means that less is memorized.", of_probes=True),
    "discoverable": Kind(
        "% of probes",
        "(n, p)-discoverable extraction: with probability p at least one of n samples is the exact suffix.",
        "extraction by sampling",
    ),
    "token_share": Kind(
        "% of suffix tokens",
        "Share of suffix tokens that are the likeliest after the true text so far.",
        of_probes=True,
    ),
    "first_mismatch": Kind(
        "tokens", "Suffix tokens that greedy decoding reproduces before its first error.", decimals=1, of_probes=True
    ),
    "strength": Kind(
        "% of suffix tokens",
        "Share of the suffix that need not be given for greedy decoding to complete it.",
        "extraction strength",
        of_probes=True,
    ),
    "left_probes": Kind(
        "% of probes",
        "Held-out probes that base extracts and the trained model still does.",
        "extraction left of what base extracts",
    ),
    "left_tokens": Kind(
        "% of suffix tokens",
        "Of the held-out probes that base extracts: suffix tokens that are still the likeliest after the true text so "
        "far. One wrong token ends exact extraction; this says how much of the sequence is left.",
        "tokens left of what base extracts",
    ),
    "left_log_prob": Kind(
        "nats per token",
        "Of the held-out probes that base extracts: log-probability of a suffix token after the true text so far.",
        "log-probability of what base extracts",
    ),
    "planted_auc": Kind(
        "AUC, 0.5: chance",
        "How well the log-probability of the suffix tells held-out sequences that were planted from those that never "
        "were.",
        "planted against never planted",
    ),
    "exposure": Kind(
        "bits",
        "How far the suffix's log-probability stands out among sequences that were never planted; 0: less likely than "
        "all of them; a model that never saw it has 1.4 in the mean among many, 0.9 among four.",
        decimals=2,
        of_probes=True,
    ),
    "graded": Kind(
        "% of suffix tokens",
        "Share of suffix tokens right, one by one, in free greedy decoding.",
        "graded memorization score",
        of_probes=True,
    ),
    "approximate": Kind(
        "% of probes",
        "Share of probes whose continuation has a BLEU above 0.75 with the suffix.",
        "approximate match",
        of_probes=True,
    ),
    "edit_similarity": Kind(
        "% of characters", "1 - edit distance / length of the continuation's text and the true one.", of_probes=True
    ),
    "common_run": Kind(
        "tokens",
        "The longest run of tokens that free greedy decoding and the suffix share, wherever it stands.",
        "longest common substring",
        decimals=1,
        of_probes=True,
    ),
    "ambiguous": Kind(
        "% of probes", "Probes decided by a margin that another batch shape or device could overturn.", of_probes=True
    ),
    "membership_auc": Kind(
        "0.5: chance",
        "How well an attack tells planted probes from others: AUC, and members found at a fixed rate of false "
        "accusations.",
        "membership, AUC",
        term="membership",
    ),
    "tpr_at_fpr_0.01": Kind("% of members", words="membership, TPR at 1 % FPR"),
    "tpr_at_fpr_0.001": Kind("% of members", words="membership, TPR at 0.1 % FPR"),
    "capability": Kind("% of items", "Share of the suite's items answered correctly; higher is better."),
    "capability above chance": Kind("% of items", "Mean over the suites in files, less what guessing gets right."),
    "contaminated": Kind(
        "items",
        "Items whose question and right answer, or whose good sentence, stand word for word in the training text.",
        "contaminated items",
        decimals=0,
    ),
    "nll": Kind(
        "nats per token",
        "Mean over the tokens of that text, in nats; lower is better.",
        "negative log-likelihood",
        short="NLL",
    ),
    "drift": Kind(
        "nats per token",
        "How far the log-likelihood of windows of real text has moved from the base model's, up or down, in the mean.",
    ),
    "source_nll": Kind("nats per token", words="source NLL"),
    "entropy": Kind("bits per token"),
    "mean_length": Kind("tokens", decimals=1),
}
"""In reading order; kinds that are not here come last, and have neither a unit nor an explanation."""


def kind(name: str) -> Kind:
    """The kind of that name, be it in `KINDS` or not, with its words."""
    found = KINDS.get(name, Kind())
    return dataclasses.replace(found, words=found.words or name.replace("_", " "))


@dataclasses.dataclass(frozen=True)
class Metric:
    """What was measured. Files hold its `name`, which is made here and taken apart nowhere.

    Attributes:
      kind: a key of `KINDS`, or another word.
      item: the suite, text set or membership attack; "" for what is of the probes or the corpus, and for the mean over
        suites.
      rule: by which a suite's answers are judged.
      held_out: None for probes in or out of the training text; `RUN` for those that the run's own filter holds out; for
        a weaker filter the size of its n-grams, or "suffix".
      group: of probes, as their file calls it.
      repeats: how often the base model saw the sequences of the group, where the group's label says so.
      suffix: the number of first tokens of the suffix that count.
      samples: of extraction by sampling: so many samples give the suffix with that probability.
      offset: of probes: the first and the last number of tokens that came before them in training. The last is None
        where there is no limit; `UNKNOWN_OFFSET` stands for probes that do not tell.
    """

    kind: str
    item: str = ""
    rule: str = "acc"
    held_out: int | str | None = None
    group: str = ""
    repeats: int | None = None
    suffix: int | None = None
    samples: tuple[int, float] | None = None
    offset: tuple[int, int | None] | None = None

    @property
    def name(self) -> str:
        """Its name in report.json, study.json and tables: "extraction/held_out/repeats=64", "nll/wiki"."""
        held_out = {None: "", RUN: "held_out"}.get(self.held_out, f"held_out={self.held_out}")
        suffix = "" if self.suffix is None else f"suffix={self.suffix}"
        offset = "" if self.offset is None else f"offset={self.offset_words}"
        parts = [part for part in (self._item, held_out, suffix, self._samples, offset, self.group) if part]
        return "/".join([self.kind, *(parts or ["all"] * kind(self.kind).of_probes)])

    __str__ = name.fget

    @property
    def words(self) -> str:
        """What it is within its kind: "all probes", "held-out, 64 repeats", "wiki"; "" for all that its kind is."""
        weaker = f"held-out, {self.held_out}" + " words" * isinstance(self.held_out, int)
        parts = (
            self._item,
            {None: "", RUN: "held-out"}.get(self.held_out, weaker),
            "" if self.suffix is None else f"first {self.suffix} tokens",
            self._samples,
            "" if self.offset is None else f"offset {self.offset_words}",
            self.group_words,
        )
        return ", ".join(filter(None, parts)) or "all probes" * kind(self.kind).of_probes

    @property
    def group_words(self) -> str:
        return self.group if self.repeats is None else f"{self.repeats} repeat" + "s" * (self.repeats != 1)

    @property
    def title(self) -> str:
        """Its kind and what it is within it: "extraction, held-out", "NLL, wiki"."""
        return ", ".join(filter(None, (self.of.short or self.of.words, self.words)))

    @property
    def of(self) -> Kind:
        return kind(self.kind)

    @property
    def is_of_probes(self) -> bool:
        return self.kind not in ("capability", "contaminated", "nll")

    @property
    def scale(self) -> int:
        """What a value is multiplied with to be shown."""
        return 100 if self.of.is_rate else 1

    @property
    def decimals(self) -> int:
        return 1 if self.of.is_rate else self.of.decimals

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts metrics as they are read: of extraction all probes, held-out ones and the weaker filters, then the
        parts of all probes and those of the held-out ones, rising with the number of repetitions.
        """
        place = list(KINDS).index(self.kind) if self.kind in KINDS else len(KINDS)
        if self.item or self.group or self.suffix is not None or self.offset:
            return place, 4 if self.held_out else 3, self.repeats or 0
        return place, {None: 0, RUN: 1}.get(self.held_out, 2), self.samples[0] if self.samples else 0

    @property
    def _item(self) -> str:
        return self.item + f":{self.rule}" * (self.rule != "acc")

    @property
    def _samples(self) -> str:
        return "n={},p={:g}".format(*self.samples) if self.samples else ""

    @property
    def offset_words(self) -> str:
        first, last = self.offset
        return "unknown" if first < 0 else f"{first}+" if last is None else f"{first}-{last}"


UNKNOWN_OFFSET = (-1, -1)
EXTRACTION, HELD_OUT = Metric("extraction"), Metric("extraction", held_out=RUN)
CAPABILITY = Metric("capability")
"""The mean over the suites."""
DRIFT = Metric("drift")
"""Over all text sets."""
LEFT_PROBES, LEFT_TOKENS = Metric("left_probes", held_out=RUN), Metric("left_tokens", held_out=RUN)


def each_suite(metrics: Iterable[Metric]) -> list[Metric]:
    """Every capability suite once, in order of appearance: by plain accuracy, or else by its first rule."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        if metric.kind == "capability" and metric.item and (metric.rule == "acc" or metric.item not in found):
            found[metric.item] = metric
    return list(found.values())


def group_extraction(label: str) -> Metric:
    """Extraction of a group of the probes file; the label "repeats=64" tells how often the base model saw its
    sequences.
    """
    repeats = re.fullmatch(r"repeats=(\d+)", label)
    return Metric("extraction", group=label, repeats=int(repeats[1]) if repeats else None)


def check_distinct(metrics: Iterable[Metric]) -> None:
    """Raises `InputError` for two metrics that files or tables would call the same, or names of one look."""
    called: dict[str, Metric] = {}
    for metric in metrics:
        for words in (metric.name, metric.title):
            other = called.setdefault(look(words), metric)
            if other != metric:
                named = [repr(name) for m in (other, metric) if (name := m.group or m.item)]
                raise InputError(
                    f"{words!r} would stand for two figures: give another name to {' or '.join(dict.fromkeys(named))}, "
                    f"a {'group of probes' if metric.kind == 'extraction' else 'suite or text set'}"
                )


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """{values of the columns `names`: rows}, in order of appearance."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(groups)
