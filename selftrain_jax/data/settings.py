"""Audit and subsets, as settings."""

import dataclasses
from typing import Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import check_choice, check_ranges, check_seed


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """A document is flagged when it shares at least `threshold` different `ngram`-grams with any one benchmark.

    Attributes:
      ngram: in words; a text of two or more words, but fewer than these, is matched whole, as one n-gram.
      threshold: see above.
      benchmarks: name -> file of rows. Each choice is read behind its question, plainly and as `evaluate.template` puts
        it; sentences of minimal pairs, and the texts of other rows, are whole.
      count_only: benchmarks whose overlaps are counted and shown, but leave no document out.
      join_fields: the strings of a row are one text, too, as in the paper's code; False takes those of rows that are no
        items one by one.
    """

    ngram: int = 8
    threshold: int = 1
    benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    count_only: tuple[str, ...] = ()
    join_fields: bool = True

    def __post_init__(self):
        check_ranges("audit", self, {"ngram": 1, "threshold": 1})
        if unknown := sorted(set(self.count_only).difference(self.benchmarks)):
            known = ", ".join(self.benchmarks) or "none"
            raise InputError(
                f"audit count_only={self.count_only} names {unknown[0]!r}, none of the benchmarks: {known}"
            )


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
