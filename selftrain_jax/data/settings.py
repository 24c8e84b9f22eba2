"""Audit and subsets, as settings."""

import dataclasses
from typing import Mapping

from selftrain_jax.core.settings import check_choice, check_ranges, check_seed


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """A document is flagged when it shares at least `threshold` different `ngram`-grams with any one benchmark.

    `benchmarks` maps a name to a file of rows; no training document may overlap with any string in them. With
    `join_fields` the strings of a row, such as question and choices, are one text, as in the paper's code: n-grams run
    over their seams, and short ones count.
    """

    ngram: int = 8
    threshold: int = 1
    benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    join_fields: bool = False

    def __post_init__(self):
        check_ranges("audit", self, {"ngram": 1, "threshold": 1})


MANY_REPETITIONS = 4.0
"""Of a document in a subset, on average: up to here repeated text teaches a model nearly what new text does, and by 16
times little more (Muennighoff et al. 2023, arXiv 2305.16264). More is warned of."""


@dataclasses.dataclass(frozen=True)
class SubsetConfig:
    """How to draw subsets.

    Attributes:
      num_tokens: size of one subset in tokens of the packed stream, one BOS per document included. Rows of T targets
        fill without a rest when it is a multiple of T, plus 1.
      num_subsets: how many subsets there are.
      seed: subset i is a function of (seed, i).
      replacement: whether a document may occur several times in one subset.
      max_repetitions: how often, on average, a subset may draw each of its documents; more is refused.
      retokenize: train on the corpus's text rather than its token ids; "auto" does so where the tokenizers of corpus
        and student differ, and False refuses such a corpus.
    """

    num_tokens: int = 5_000_000
    num_subsets: int = 3
    seed: int = 0
    replacement: bool = True
    max_repetitions: float = 16.0
    retokenize: bool | str = "auto"

    def __post_init__(self):
        check_ranges("subset", self, {"num_tokens": 1, "num_subsets": 1, "max_repetitions": 1})
        check_seed("subset", self.seed)
        check_choice("subset", self, "retokenize", (True, False, "auto"))
