"""The results of a run as flat tables, for pandas, R or a spreadsheet: one row per model and item, or one per figure.

`ITEM_COLUMNS` and `METRIC_COLUMNS` say what the columns are; files and documentation follow them.
"""

import dataclasses
import io
import json
import math
import os
from typing import Any, Collection, Iterator, Mapping, NamedTuple, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import read_json, write_atomic, write_jsonl
from selftrain_jax.core.rows import has_ending, read_rows
from selftrain_jax.data.subset import evenly_spread
from selftrain_jax.evaluation import likelihood, suite
from selftrain_jax.evaluation.items import Items
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.report.metric import HELD_OUT, Metric, group_extraction, kind
from selftrain_jax.run import summary
from selftrain_jax.run.names import RunNames

ENDINGS = (".parquet", ".csv", ".jsonl")


class Column(NamedTuple):
    type: pa.DataType
    meaning: str


_TEXT, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_WHOSE = {
    "run": Column(_TEXT, "of a study or comparison: which of the runs"),
    "student": Column(_TEXT, "of a study: the model that is trained"),
    "condition": Column(_TEXT, "of a study: budget and learning rate, where it has several"),
    "seed": Column(_COUNT, "of a study: seed of the run"),
    "relation": Column(_TEXT, "of a study: how the arm's text is related to the student"),
    "arm": Column(_TEXT, "the training text; empty for the base model"),
    "subset": Column(_COUNT, "number of the training subset; of a figure of base, the one that held-out is of"),
}
ITEM_COLUMNS = {
    **_WHOSE,
    "model": Column(_TEXT, "the model in the run: base, self-0, real-0, ..."),
    "kind": Column(_TEXT, "the setting that names the file: multiple_choice, minimal_pairs, last_words, texts, probes"),
    "suite": Column(_TEXT, "its name there; empty for probes"),
    "item": Column(_COUNT, "number of the row in its file, from 1; of texts, of the window"),
    "id": Column(_TEXT, "the row's own `id` (or `index`)"),
    "cluster": Column(_TEXT, "the row's own `cluster`; of windows, the number of their text"),
    "group": Column(_TEXT, "of probes: their group"),
    "repeats": Column(_COUNT, "of probes: how often the base model saw them, where the group says so"),
    "offset": Column(_COUNT, "of probes: tokens before them in their training sequence"),
    "suffix_at": Column(_COUNT, "of probes: tokens before the suffix in their training sequence"),
    "held_out": Column(_FLAG, "of probes: not in the training text by `held_out_ngram` words; base: of no subset"),
    "held_out_13": Column(_FLAG, "the same by 13 words"),
    "held_out_suffix": Column(_FLAG, "the same by the whole suffix"),
    "contaminated": Column(_FLAG, "of questions and pairs: whether question and answer stand in the training text"),
    "prefix": Column(_TEXT, "what is given: prompt, first words, or prefix (decoded)"),
    "suffix": Column(_TEXT, "what is asked for: right choice, good sentence, last word, scored text, or suffix"),
    "acc": Column(_FLAG, "right, by log-probability"),
    "acc_norm": Column(_FLAG, "right, by log-probability per character"),
    "acc_bytes": Column(_FLAG, "right, by log-probability per byte"),
    "length": Column(_COUNT, "of probes and windows: tokens of the suffix"),
    "log_prob": Column(_REAL, "of probes and windows: log-probability of the suffix, in nats"),
    "exact": Column(_FLAG, "of probes: greedy decoding gives the whole suffix"),
    "first_mismatch": Column(_COUNT, "of probes: suffix tokens before the first error"),
    "token_share": Column(_REAL, "of probes: share of suffix tokens that are the likeliest after the true text"),
    "strength": Column(_REAL, "of probes: extraction strength"),
    "least_margin": Column(_REAL, "of probes: smallest gap of the two best logits up to the first error"),
    "graded": Column(_REAL, "with free running: share of suffix tokens right, one by one"),
    "bleu": Column(_REAL, "with free running: BLEU of what was written with the suffix"),
    "edit_similarity": Column(_REAL, "with free running: 1 - edit distance / length, of the texts"),
    "common_run": Column(_COUNT, "with free running: longest run of tokens in both, what was written and the suffix"),
    "emitted": Column(_TEXT, "with free running: what greedy decoding wrote after the prefix (decoded)"),
    "sampled_log_prob": Column(
        _REAL, "with extraction by sampling: log-probability of drawing it, in nats; -inf: never"
    ),
    "member": Column(_FLAG, "with membership attacks: whether it counts as a member"),
    "membership_loss": Column(_REAL, "score of that attack, higher for members"),
    "membership_zlib": Column(_REAL, "the same"),
    "membership_min_k": Column(_REAL, "the same"),
    "membership_min_k_plus": Column(_REAL, "the same"),
    "membership_dc_pdd": Column(_REAL, "the same"),
    "membership_recall": Column(_REAL, "the same; null for the probes that stand before the others"),
    "membership_reference": Column(_REAL, "the same"),
}
METRIC_COLUMNS = {
    **_WHOSE,
    "model": Column(_TEXT, "as report.json calls it: base, self, control:real, ..."),
    "metric": Column(_TEXT, "the figure's name in report.json"),
    "kind": Column(_TEXT, "what is measured: extraction, capability, nll, ..."),
    "suite": Column(_TEXT, "suite, text set or attack"),
    "rule": Column(_TEXT, "of capability: how the answer is judged"),
    "held_out": Column(_TEXT, "of probes: run (by the run's own filter), 13 or suffix; empty for all"),
    "group": Column(_TEXT, "of probes: the group that it is of"),
    "repeats": Column(_COUNT, "of probes: how often the base model saw that group"),
    "first_tokens": Column(_COUNT, "of probes: how many first tokens of the suffix count; empty for all"),
    "offset": Column(_TEXT, "of probes: tokens before them in training, first to last; empty for all"),
    "samples": Column(_COUNT, "of extraction by sampling: how many samples give the suffix"),
    "probability": Column(_REAL, "of extraction by sampling: with what probability"),
    "unit": Column(_TEXT, "of the value; rates are fractions in [0, 1]"),
    "value": Column(_REAL, "the figure"),
    "low": Column(_REAL, "lower end of its 95 % interval"),
    "high": Column(_REAL, "upper end"),
    "n": Column(_COUNT, "items (of texts: tokens) that it is of"),
    "difference": Column(_REAL, "change against base on the same items"),
    "difference_low": Column(_REAL, "lower end of its 95 % interval"),
    "difference_high": Column(_REAL, "upper end"),
    "p_value": Column(_REAL, "of the change, adjusted for all suites and models of a subset where it is of capability"),
    "unadjusted_p_value": Column(_REAL, "the same without that"),
    "items": Column(_TEXT, "fingerprint of the items: figures are comparable where it is the same"),
}
Place = Mapping[str, Mapping[str, Any]]
"""Arm -> the first columns of its rows, of a run of a study."""


def item_table(run: RunNames, arms: Collection[str] | None = None, place: Place = {}) -> pa.Table:
    """One row per evaluated model and item, with `ITEM_COLUMNS`; nothing is null but what was not measured.

    Args:
      arms: only of these, and the base model; held out is what is in the text of none of them.

    Raises:
      InputError: a file that was measured on is gone, or an evaluation is not done.
    """
    common, tables = list(_items(run)), []
    masks = summary.probe_masks(run, arms)
    for model, where in run.models.items():
        if where and arms is not None and where[0] not in arms:
            continue
        arm, subset = where or (None, None)
        measured = Items.load(run.workdir / "evaluate" / model)
        own = place.get(arm or run.main, {}) | ({} if arm else {"arm": None, "relation": None})
        whose = {"arm": arm, "subset": subset, **own, "model": model}
        held_out = masks if where is None else [masks[subset]]
        for columns in common:
            count = len(columns["item"])
            if not (found := _measures(columns, measured, held_out, run.config.evaluate.held_out_ngram)):
                raise InputError(f"{columns['kind']} {columns['suite'] or ''} was not measured on {model}")
            tables.append(_table(ITEM_COLUMNS, whose | columns | found, count))
    return pa.concat_tables(tables) if tables else _table(ITEM_COLUMNS, {}, 0)


def _items(run: RunNames) -> Iterator[dict[str, Any]]:
    """Of every suite, text set and the probes: the columns that are the same for all models."""
    evaluate, student = run.config.evaluate, run.model_path(run.student)
    config, tokenizer = load_config(student), load_tokenizer(student)
    everything = dataclasses.replace(evaluate, limit=0)
    texts, questions, pairs, words, probes = suite.read_inputs(everything, run.path, config, tokenizer)

    def decoded(sequences: Sequence[np.ndarray]) -> list[str]:
        return tokenizer.batch_decode([ids.tolist() for ids in sequences], clean_up_tokenization_spaces=False)

    def asked(row: Mapping[str, Any]) -> tuple[str | None, str]:
        if "gold" in row:
            return evaluate.template.format(question=row["question"]), " " + row["choices"][row["gold"]]
        if "sentence_good" in row:
            return None, row["sentence_good"]
        prefix, space, word = row["text"].rpartition(" ")
        return prefix, space + word

    for setting, suites in (("multiple_choice", questions), ("minimal_pairs", pairs), ("last_words", words)):
        for name, rows in suites.items():
            chosen = evenly_spread(len(rows), evaluate.limit or len(rows))
            rows = [rows[i] for i in chosen]
            numbers = chosen + 1
            if setting == "minimal_pairs":  # of which those of one sentence are left out
                file = enumerate(read_rows(run.path(evaluate.minimal_pairs[name])), 1)
                kept = [n for n, row in file if not likelihood.alike(row["sentence_good"], row["sentence_bad"])]
                numbers = np.array(kept)[chosen]
            prefixes, suffixes = zip(*map(asked, rows))
            yield {
                "kind": setting,
                "suite": name,
                "item": numbers,
                **{column: [_label(row.get(column)) for row in rows] for column in ("id", "cluster")},
                "prefix": prefixes,
                "suffix": suffixes,
            }
    for name, documents in texts.items():
        reader = suite.read_at_once(evaluate, config)
        windows, starts, of = likelihood.text_windows(reader, tokenizer, documents, evaluate.context_len)
        yield {
            "kind": "texts",
            "suite": name,
            "item": np.arange(len(windows)) + 1,
            "cluster": [str(number + 1) for number in of],
            "prefix": decoded([ids[int(ids[0] == config.bos_token_id) : at] for ids, at in zip(windows, starts)]),
            "suffix": decoded([ids[at:] for ids, at in zip(windows, starts)]),
        }
    if probes:
        repeats = [group_extraction(probe.group).repeats for probe in probes]
        yield {
            "kind": "probes",
            "suite": None,
            "item": np.arange(len(probes)) + 1,
            "id": [_label(probe.id) for probe in probes],
            "cluster": [_label(probe.cluster) for probe in probes],
            "group": [None if probe.group == "all" else probe.group for probe in probes],
            "repeats": repeats,
            "offset": [probe.offset for probe in probes],
            "prefix": decoded([probe.prefix for probe in probes]),
            "suffix": decoded([probe.suffix for probe in probes]),
            "decoded": decoded,
        }


def _label(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _measures(
    columns: Mapping[str, Any], measured: Items, masks: Sequence[summary.Masks], ngram: int
) -> dict[str, Any]:
    """The columns of one suite, text set, or the probes, that were measured on one model."""
    kind, name = columns["kind"], columns["suite"]
    if kind == "probes":
        return _probe_measures(columns, measured, masks, ngram)
    if kind == "texts":
        nats, tokens = measured.nll.get(name, (None, None))
        return {} if nats is None else {"log_prob": -nats, "length": tokens}
    found = {rule: right for (of, rule), right in measured.capability.items() if of == name}
    return found | ({"contaminated": measured.contaminated[name]} if name in measured.contaminated else {})


def _probe_measures(columns, measured: Items, masks: Sequence[summary.Masks], ngram: int) -> dict[str, Any]:
    found = {column: values for column, values in measured.probes.items() if column in ITEM_COLUMNS}
    for own in ("cluster", "group", "offset"):  # the file's own words for them
        found.pop(own, None)
    if "suffix_at" in found:
        found["suffix_at"] = [None if at < 0 else int(at) for at in found["suffix_at"]]
    filters = {"held_out": HELD_OUT, "held_out_13": Metric("extraction", held_out=13)}
    filters["held_out_suffix"] = Metric("extraction", held_out="suffix")
    for column, metric in filters.items():
        which = HELD_OUT if ngram == 13 and metric.held_out == 13 else metric
        found[column] = np.all([mask[which] for mask in masks], axis=0)
    if (written := measured.probes.get("written")) is not None:
        ids = [row[:length] for row, length in zip(written, measured.probes["length"])]
        found["emitted"] = columns["decoded"](ids)
    if measured.members is not None:
        found["member"] = measured.members
        for attack, scores in measured.membership.items():
            found[f"membership_{attack}"] = np.where(np.isnan(scores), None, scores)  # left out of the attack
    return found


def metric_table(run: RunNames, arms: Collection[str] | None = None, place: Place = {}) -> pa.Table:
    """One row per figure of report.json, with `METRIC_COLUMNS`."""
    report = read_report(run)
    key = "model", "metric", "seed"
    changes = {tuple(row[k] for k in key): row for row in report["comparisons"]}
    names, figures = {summary.model_name(run, arm): arm for arm in run.arms}, report["figures"]
    rows = []
    for row in report["metrics"]:
        arm, about = names.get(row["model"]), figures[row["metric"]]
        if arm and arms is not None and arm not in arms:
            continue
        change = changes.get(tuple(row[k] for k in key), {})
        own = place.get(arm or run.main, {}) | ({} if arm else {"arm": None, "relation": None})
        unit = kind(about["kind"]).unit.replace("% of", "share of") or None
        about = about | {"suite": about["item"], "unit": unit, "first_tokens": about["suffix"]}
        about["held_out"] = _label(about["held_out"])
        about["samples"], about["probability"] = about["samples"] or (None, None)
        about["offset"] = about["offset"] and Metric("extraction", offset=tuple(about["offset"])).offset_words
        about = {name: None if value == "" else value for name, value in about.items() if name in METRIC_COLUMNS}
        whose = {"arm": arm, "subset": row["seed"], **own, "model": row["model"], "metric": row["metric"]}
        values = {name: row[name] for name in ("value", "low", "high", "n")}
        values |= {name: change.get(name) for name in ("difference", "p_value", "unadjusted_p_value")}
        values |= {f"difference_{end}": change.get(end) for end in ("low", "high")}
        rows.append(whose | about | values)
    return _table(METRIC_COLUMNS, {name: [row.get(name) for row in rows] for name in METRIC_COLUMNS}, len(rows))


def read_report(run: RunNames) -> dict[str, Any]:
    """What report.json of a run holds; `InputError` for one that does not say which items its figures are of."""
    report = read_json(run.workdir / "report" / "report.json", "report")
    if "figures" not in report:
        raise InputError(
            f"report of {run.home} was written by an earlier version, which left out what its figures are of: write it "
            f"again with `selftrain report --workdir={run.home}`"
        )
    return report


def _table(known: Mapping[str, Column], columns: Mapping[str, Any], count: int) -> pa.Table:
    """A table of `known` columns, of which one that is missing is null, and a single value stands in every row."""

    def array(name: str, of: pa.DataType) -> pa.Array:
        values = columns.get(name)
        if values is None or isinstance(values, (str, int)):
            return pa.repeat(pa.scalar(values, of), count)
        return pa.array(list(values) if of == _TEXT else values, of)

    schema = pa.schema([pa.field(name, c.type, metadata={"meaning": c.meaning}) for name, c in known.items()])
    return pa.table([array(name, c.type) for name, c in known.items()], schema)


def check_ending(out: str | os.PathLike, endings: tuple[str, ...] = ENDINGS) -> None:
    """Raises `InputError` for a name that does not say which kind of file to write."""
    if not has_ending(out, endings):
        raise InputError(f"table {out}: its name must end in {', '.join(endings)}")


def write_table(table: pa.Table, out: str | os.PathLike) -> None:
    """Writes it as Parquet, CSV or JSON lines, as the ending says, whole or not at all.

    JSON has no infinity: there it is the text "Infinity" or "-Infinity", since null says that nothing was measured.
    """
    check_ending(out)
    ending, buffer = os.path.splitext(os.fspath(out).lower())[1], io.BytesIO()
    if ending == ".jsonl":
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        rows = ({k: names.get(v, v) if isinstance(v, float) else v for k, v in r.items()} for r in table.to_pylist())
        write_jsonl(out, rows)
        return
    {".parquet": pyarrow.parquet.write_table, ".csv": pyarrow.csv.write_csv}[ending](table, buffer)
    write_atomic(out, buffer.getvalue())
