"""What a study found, as rows that any table program reads, and the order in which they are shown: the border between
measuring, analysing and showing it.
"""

import collections
import dataclasses
import functools
from typing import Any, Callable, Iterable, NamedTuple, Sequence

from selftrain_jax.report.metric import Row

RELATIONS = ("self", "same lineage", "same family, different recipe", "other family")
"""How the source of a corpus stands to the student that is trained on it, nearest first."""

UNTRAINED = ("untouched, evaluated again", "weights moved at random")
"""What evaluation alone adds, and what weights do that are moved as far as self-training moves them, but anywhere."""

CONTROLS = ("real text", "shuffled real text", "real text with fresh sequences", *UNTRAINED)
"""What stands in the place of a relation where no model wrote the text."""


class Proxy(NamedTuple):
    words: str
    kind: str  # "intrinsic": those of the paper; "relational": those that compare the source with the student
    helpful_sign: int = 1  # the direction in which it would speak for a text


PROXIES = {
    "nll": Proxy("NLL", "intrinsic", -1),
    "bits_per_byte": Proxy("bits per byte", "intrinsic", -1),
    "hidden_similarity": Proxy("hidden-state similarity", "intrinsic"),
    "tfidf_similarity": Proxy("TF-IDF similarity", "intrinsic"),
    "sentence_similarity": Proxy("sentence similarity", "intrinsic"),
    "unknown_share": Proxy("share of unknown tokens", "relational", -1),
    "excess_nll": Proxy("excess NLL", "relational", -1),
    "gradient_alignment": Proxy("gradient alignment", "relational"),
}
MOST_UNKNOWN = 0.01  # of the tokens: a likelihood of what the student cannot read is not that of the source's text


@dataclasses.dataclass(frozen=True)
class StudyData:
    """Everything that a study's page and tables show. A missing number is None; intervals are at 95 %.

    "arm" names the text that was trained on: a source model ("A_large"; "A_large t=0.8" where there are several
    temperatures) or a control ("real", "shuffled", "real+fresh", "none",
    "noise"). "relation" is one of `RELATIONS` or `CONTROLS`.
    "condition" says budget and learning rate where the study has several of them, else it is "". "metric" is a
    `metric.Metric`.
    "utility" is the mean over the capability suites of accuracy after minus before, a share (0.01 is one point).

    Attributes:
      title, command: of the study.
      settings: the resolved config, nested; every seed is in it.
      versions: software and devices.
      models: {"model", "family", "lineage", "recipe", "parameters"}: who took part.
      results: {"student", "arm", "relation", "condition", "seed", "subset", "metric", "before", "after", "n"}, one per
        trained model and metric (single suites and their mean, extraction, likelihoods); "n" counts the items of
        a share, and is None for other figures. Rates are shares; nll is in nats per token.
      memory: {"student", "arm", "relation", "condition", "seed", "subset", "extracted", "lost", "token_share_before",
        "token_share_after", "log_prob_before", "log_prob_after"}: of the held-out probes that the base model extracts,
        their number, how many of them no longer, share of suffix tokens right, nats per suffix token.
      utility: {"student", "arm", "relation", "condition", "value", "low", "high", "num_replicates", "p_value",
        "significant"}, over seeds; the p-value is adjusted for all rows (Holm), "significant" is whether it is below
        0.05.
      by_relation: {"relation", "value", "low", "high", "num_replicates"}: mean utility of all pairs of a relation; over
        seeds. It mixes students: relations are compared by `contrasts`.
      contrasts: {"relation", "minus", "student", "value", "low", "high", "num_replicates"}: utility of a relation minus
        that of another, within the students that have both; "student" is "" for their mean.
      proxies: {"student", "arm", "relation", "condition", "seed", "proxy", "value", "utility"}.
      correlations: {"proxy", "kind", "scope", "n", "sources", "rho", "low", "high", "p_value"}: Spearman's rank
        correlation of proxy and utility; "kind" as in `Proxy`; "scope" is "within students" (ranks within student,
        condition and seed; interval and p-value over sources) or "all pairs", which mixes students and has neither.
      curves: {"student", "arm", "relation", "condition", "seed", "subset", "step", "metric", "value"} during training.
      contamination: rows of `study.comparisons.by_contamination`.
      grid: rows of `study.grid.grid`.
      matched: rows of `study.comparisons.at_equal_drift`.
      components: rows of `study.comparisons.components`.
      selectivity: {"student", "arm", "relation", "condition", "value", "low", "high", "capability_kept",
        "extraction_lost", "num_replicates"}, over seeds.
      generations: {"student", "mode", "generation", "seed", "metric", "value"}; mode "replace" or "accumulate"; also
        kinds "distinct_1" ..., "entropy" (bits per token), "mean_length" (tokens), "source_nll" of the corpus.
      loops: rows of `study.comparisons.over_generations`.
      verdicts: {"finding", "claim", "verdict", "reason", "rules", "seeds", "evidence"}: "rules" is their version and
        date. Evidence is rows {"name", "value", "low", "high", "unit", "num_replicates", "detectable", "p_value"} with
        unit "points" (value already times 100), "%", "nats per token" or ""; the last two may be missing.
        "detectable": the effect found with 80 % power; "p_value": adjusted.
      older_verdicts: the same by older rules.
      costs: {"stage", "count", "seconds", "tokens"} per kind of stage, over all runs.
      runs: {"run", "student", "condition", "seed", "report"}: every run with the path of its own page, relative to the
        study's folder.
      notes: sentences about this study that a reader must know (what was left out, and why).
    """

    title: str
    command: str
    settings: Row
    versions: Row
    models: Sequence[Row]
    results: Sequence[Row]
    memory: Sequence[Row]
    utility: Sequence[Row]
    by_relation: Sequence[Row]
    contrasts: Sequence[Row]
    proxies: Sequence[Row]
    correlations: Sequence[Row]
    curves: Sequence[Row]
    selectivity: Sequence[Row]
    generations: Sequence[Row]
    verdicts: Sequence[Row]
    older_verdicts: Sequence[Row]
    costs: Sequence[Row]
    runs: Sequence[Row]
    contamination: Sequence[Row] = ()
    grid: Sequence[Row] = ()
    loops: Sequence[Row] = ()
    matched: Sequence[Row] = ()
    components: Sequence[Row] = ()
    notes: Sequence[str] = ()

    @functools.cached_property
    def students(self) -> list[str]:
        """In the order of `models`, then of appearance."""
        tables = (self.utility, self.results, self.curves, self.selectivity, self.generations)
        known = [row["model"] for row in self.models]
        seen = dict.fromkeys(row["student"] for rows in tables for row in rows)
        return sorted(seen, key=lambda s: known.index(s) if s in known else len(known))

    @property
    def seeds(self) -> list:
        """Every seed that a row names, in order."""
        rows = (*self.results, *self.proxies, *self.curves, *self.generations, *self.runs)
        return sorted({row["seed"] for row in rows if row["seed"] is not None}, key=lambda s: (str(type(s)), s))

    def arms(self, rows: Sequence[Row]) -> list[str]:
        """The arms of `rows`: each student's own text in the students' order, then by nearest relation, controls
        last.
        """
        keys: dict[str, tuple] = {}
        for row in rows:
            own = self.students.index(row["student"]) if row["relation"] == "self" else 0
            keys[row["arm"]] = min(keys.get(row["arm"], (len(EVERY_RELATION) + 1,)), (_rank(row["relation"]), own))
        return sorted(keys, key=keys.get)

    def by_pair(self, rows: Sequence[Row]) -> list[Row]:
        """`rows` by condition, student, then arm in the order of `arms`."""
        arms, places = self.arms(rows), conditions(rows)
        return sorted(
            rows, key=lambda r: (places.index(r["condition"]), self.students.index(r["student"]), arms.index(r["arm"]))
        )


EVERY_RELATION = (*RELATIONS, *CONTROLS)
_HUES = {
    "self": 1,
    "same lineage": 3,
    "same family, different recipe": 6,
    "other family": 2,
    "real text": 0,
    "shuffled real text": 5,
}


def hue(relation: str) -> int:
    """The colour of a relation, the same on the whole page."""
    return _HUES.get(relation, 4)


def proxy_words(proxy: str) -> str:
    return PROXIES[proxy].words if proxy in PROXIES else proxy.replace("_", " ")


def conditions(rows: Sequence[Row]) -> list[str]:
    """In order of appearance."""
    return list(dict.fromkeys(row["condition"] for row in rows))


def in_order(rows: Sequence[Row]) -> list[Row]:
    """`rows` by relation, nearest first, controls last."""
    return sorted(rows, key=lambda row: _rank(row["relation"]))


def over_seeds(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, tuple[float, float, float]]:
    """{key: (mean, lowest, highest value)}; rows without a value are left out."""
    values = collections.defaultdict(list)
    for row in rows:
        if row["value"] is not None:
            values[key(row)].append(row["value"])
    return {k: (sum(v) / len(v), min(v), max(v)) for k, v in values.items()}


def _rank(relation: str) -> int:
    return EVERY_RELATION.index(relation) if relation in EVERY_RELATION else len(EVERY_RELATION)
