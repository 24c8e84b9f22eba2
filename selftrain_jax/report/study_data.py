"""What a study found, as rows that any table program reads: the border between measuring, analysing and showing it."""

import dataclasses
from typing import Any, Mapping, Sequence

RELATIONS = ("self", "same lineage", "same family, different recipe", "other family")
"""How the source of a corpus stands to the student that is trained on it, nearest first."""

CONTROLS = ("real text", "shuffled real text", "untouched, evaluated again")
"""What stands in the place of a relation where no model wrote the text; the last was trained on none, and shows what
evaluation alone adds."""

VERDICTS = ("reproduced", "not reproduced", "inconclusive")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StudyData:
    """Everything that a study's page and tables show. A missing number is None; intervals are at 95 %.

    "arm" names the text that was trained on: a source model ("A_large"; "A_large t=0.8" where there are several
    temperatures) or a control ("real", "shuffled", "none"). "relation" is one of `RELATIONS` or `CONTROLS`. "condition"
    says budget and learning rate where the study has several of them, else it is "". "utility" is the mean over the
    capability suites of accuracy after minus before, a share (0.01 is one point).

    Attributes:
      title, command: of the study.
      settings: the resolved config, nested; every seed is in it.
      versions: software and devices.
      models: {"model", "family", "lineage", "recipe", "parameters"}: who took part.
      results: {"student", "arm", "relation", "condition", "seed", "subset", "metric", "before", "after"}, one per
        trained model and metric ("capability/<suite>", "capability", "extraction/all", "extraction/held_out",
        "extraction/held_out/<group>", "extraction/random", "nll/<set>"). Rates are shares; nll is in nats per token.
      utility: {"student", "arm", "relation", "condition", "value", "low", "high", "num_replicates", "significant"},
        over seeds; "significant" is whether the interval excludes 0.
      by_relation: {"relation", "value", "low", "high", "num_replicates"}: mean utility of all pairs of a relation; over
        seeds.
      proxies: {"student", "arm", "relation", "condition", "seed", "proxy", "value", "utility"}.
      correlations: {"proxy", "kind", "scope", "n", "rho", "low", "high"}: Spearman's rank correlation of proxy and
        utility; "kind" is "intrinsic" (those of the paper) or "relational"; "scope" is "all pairs" or "within
        students"; the bootstrap resamples pairs of student and text, each with all its seeds.
      curves: {"student", "arm", "relation", "condition", "seed", "step", "metric", "value"} during training; metrics
        "capability" (mean over suites), "extraction/all", "extraction/held_out", "extraction/held_out/<group>", ...
      selectivity: {"student", "arm", "relation", "condition", "value", "low", "high", "capability_kept",
        "extraction_lost", "num_replicates"}, over seeds.
      generations: {"student", "mode", "generation", "seed", "metric", "value"}; mode "replace" or "accumulate"; metrics
        "distinct_1" ..., "entropy" (bits per token), "mean_length" (tokens), "source_nll", "nll/<set>", "capability",
        "extraction/all", ...
      verdicts: {"finding", "claim", "verdict", "reason", "evidence"}; evidence is rows {"name", "value", "low", "high",
        "unit"} with unit "points" (value already times 100), "%", or "".
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
    utility: Sequence[Row]
    by_relation: Sequence[Row]
    proxies: Sequence[Row]
    correlations: Sequence[Row]
    curves: Sequence[Row]
    selectivity: Sequence[Row]
    generations: Sequence[Row]
    verdicts: Sequence[Row]
    costs: Sequence[Row]
    runs: Sequence[Row]
    notes: Sequence[str] = ()


KINDS = {
    "nll": "intrinsic",
    "hidden_similarity": "intrinsic",
    "tfidf_similarity": "intrinsic",
    "sentence_similarity": "intrinsic",
    "unknown_share": "relational",
    "excess_nll": "relational",
    "gradient_alignment": "relational",
}


NAMES = {
    "nll": "NLL",
    "hidden_similarity": "hidden-state similarity",
    "tfidf_similarity": "TF-IDF similarity",
    "sentence_similarity": "sentence similarity",
    "unknown_share": "share of unknown tokens",
    "excess_nll": "excess NLL",
    "gradient_alignment": "gradient alignment",
}


HELPFUL_SIGN = {"nll": -1, "excess_nll": -1, "unknown_share": -1}
"""The direction in which a proxy would speak for a text, where it is not "more"."""

MOST_UNKNOWN = 0.01  # of the tokens: a likelihood of what the student cannot read is not that of the source's text
