"""Everything that is measured on one model."""

import contextlib
import dataclasses
import functools
import operator
import pathlib
import warnings
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.audit import contaminated_items
from selftrain_jax.data.subset import evenly_spread
from selftrain_jax.data.texts import load_texts
from selftrain_jax.distributed import job
from selftrain_jax.distributed.mesh import is_local
from selftrain_jax.evaluation import approximate, discoverable, free_running, likelihood, membership, memorization
from selftrain_jax.evaluation.items import Items, cluster_numbers
from selftrain_jax.evaluation.score import score
from selftrain_jax.evaluation.settings import SUITES, EvaluateSettings
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params
from selftrain_jax.models.files.tokenizer import (
    UNKNOWN_TOLD,
    call_tokenizer,
    known_ids,
    load_tokenizer,
    unknown_share,
    unknown_tokens,
)

_LOOKED_AT, _FEW = 256, 8
"""Probes of which is seen whether they are of the model's tokenizer, and those that are too few to tell."""


def begins_with_bos(settings: EvaluateSettings, tokenizer: Any) -> bool:
    """What `settings.add_bos` means for a model with this tokenizer: "auto", that BOS is put before a text where the
    tokenizer does so by itself. Those of Gemma and Llama 3 do, and the harness's `hf` model with them; those of Pythia,
    Qwen and GPT-2 do not."""
    return put_first(tokenizer) is not None if settings.add_bos == "auto" else bool(settings.add_bos)


def put_first(tokenizer: Any) -> int | None:
    """The id that the tokenizer puts before a text by itself, None without any: its BOS; where it names none, as a
    `tokenizer.json` alone does not, whatever that is."""
    alone, whole = (call_tokenizer(tokenizer, ["x"], add_special_tokens=value)[0][:1] for value in (False, True))
    named = tokenizer.bos_token_id
    return whole[0] if whole and whole != alone and named in (None, *whole) else None


def same_again_share(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> float:
    """The share of `sequences` of ids that `tokenizer` makes of their own text, first and last id aside: nearly all
    where it made them, hardly any where another one did (of windows of 64, among Pythia's, SmolLM2's and Gemma 3's, all
    and at most 5 %)."""
    again = call_tokenizer(tokenizer, tokenizer.batch_decode(sequences, clean_up_tokenization_spaces=False))

    def joined(ids: Sequence[int]) -> str:
        return f" {' '.join(map(str, ids))} "

    same = [joined(ids[1:-1]) in joined(found) for ids, found in zip(sequences, again)]
    return sum(same) / len(same)


def read_inputs(
    settings: EvaluateSettings, find: Callable[[str], pathlib.Path], config: DecoderConfig, tokenizer: Any
) -> tuple[dict[str, list], dict[str, list], dict[str, list], dict[str, list], list[memorization.Probe]]:
    """Texts, questions, minimal pairs and last words by name, each within `settings.limit` and `max_chars`, and the
    probes; `InputError` for the first file that is unusable, and for settings that do not fit the probes or the
    model."""
    if settings.texts and settings.context_len > (room := read_at_once(settings, config).max_position):
        raise InputError(f"evaluate context_len={settings.context_len} is longer than the model's context of {room}")
    add_bos, first = begins_with_bos(settings, tokenizer), put_first(tokenizer)
    if settings.add_bos == "auto" and first not in (None, config.bos_token_id):
        what = f"the model's tokenizer puts id {first} before a text, but config.json names bos_token_id"
        warnings.warn(InputWarning(f"{what}={config.bos_token_id}, which is put before prompts"), stacklevel=2)

    def load(reader: Callable, files: Mapping[str, str]) -> dict[str, list]:
        found = {name: reader(find(path)) for name, path in files.items()}
        for name, rows in found.items():
            _cluster(rows, f"suite {name} in {files[name]}")
        return limited(found, settings.limit)

    texts = {name: load_texts(find(path)) for name, path in settings.texts.items()}
    inputs = (
        {name: _beginning(found, settings.max_chars) for name, found in texts.items()},
        load(likelihood.load_multiple_choice, settings.multiple_choice),
        load(likelihood.load_minimal_pairs, settings.minimal_pairs),
        load(likelihood.load_last_words, settings.last_words),
        memorization.load_probes(find(settings.probes), config, add_bos=add_bos) if settings.probes else [],
    )
    for name, rows in inputs[1].items():
        if odd := sum(settings.template.format(question=row["question"])[-1:] in (" ", "\t") for row in rows):
            what = f"question file {settings.multiple_choice[name]}: {odd} of {len(rows)} prompts end in a space, and"
            warnings.warn(f"{what} another one stands before each choice", InputWarning, stacklevel=2)
    probes, known = inputs[-1], known_ids(config, tokenizer)
    for number, probe in enumerate(probes, 1):
        ids = np.concatenate([probe.prefix, probe.suffix])
        if not known[ids].all():
            raise InputError(
                f"probe file {settings.probes}, probe {number}: id {ids[~known[ids]][0]} is none of the {known.sum()} "
                "ids that the model's tokenizer has; make the probes with it"
            )
    unknown = list(unknown_tokens(tokenizer).keys() - set(config.special_ids))  # GPT-NeoX has one token for all
    if mute := [n for n, p in enumerate(probes, 1) if np.isin(np.concatenate([p.prefix, p.suffix]), unknown).any()]:
        what = f"probe file {settings.probes}: {len(mute)} of {len(probes)} probes, first probe {mute[0]}, hold a token"
        warnings.warn(f"{what} of unknown text, and to emit that repeats no text", InputWarning, stacklevel=2)
    looked_at = [np.concatenate([p.prefix, p.suffix]).tolist() for p in limited({"": probes}, _LOOKED_AT)[""]]
    if len(looked_at) >= _FEW and (share := same_again_share(tokenizer, looked_at)) < 0.5:
        what = f"probe file {settings.probes}: the model's tokenizer makes these ids of the text of {share:.0%} of the"
        warnings.warn(f"{what} probes alone: are they of another tokenizer?", InputWarning, stacklevel=2)
    shortest = min((len(p.suffix) for p in probes), default=0)
    if probes and settings.suffix_lengths and settings.suffix_lengths[-1] > shortest:
        raise InputError(
            f"evaluate suffix_lengths={settings.suffix_lengths} go beyond the shortest suffix, which has {shortest} "
            "tokens"
        )
    groups = {p.group for p in probes}
    if settings.nonmembers and (settings.nonmembers not in groups or len(groups) < 2):
        raise InputError(
            f"evaluate nonmembers={settings.nonmembers!r} must be one of several groups of probes, of "
            f"{', '.join(sorted(groups)) or 'none'}"
        )
    if settings.recall_shots:
        lengths = np.array([len(p.prefix) + len(p.suffix) for p in probes])
        shots = _shots(settings, [p.group for p in probes])
        if len(shots) < settings.recall_shots or len(shots) == sum(p.group == settings.nonmembers for p in probes):
            raise InputError(
                f"evaluate recall_shots={settings.recall_shots} must leave non-members to tell from: lower it, or give "
                f"more probes of group {settings.nonmembers!r}"
            )
        longest = int(lengths[shots].sum() + lengths.max()) - 1 + add_bos
        if longest > config.max_position:
            raise InputError(
                f"evaluate recall_shots={settings.recall_shots} makes sequences of {longest} tokens, too many for the "
                f"model's context of {config.max_position}: lower it"
            )
    return inputs


def _shots(settings: EvaluateSettings, groups: Sequence[str]) -> np.ndarray:
    """Which probes stand before the others for ReCaLL: the first non-members."""
    return np.flatnonzero(np.array(groups) == settings.nonmembers)[: settings.recall_shots or 0]


def _cluster(rows: Sequence[Mapping[str, Any]], what: str) -> np.ndarray | None:
    return cluster_numbers([row.get("cluster") for row in rows], what)


def read_at_once(settings: EvaluateSettings, config: DecoderConfig) -> DecoderConfig:
    """`config` with the context that is used of it."""
    longest = settings.max_length or config.max_position
    return dataclasses.replace(config, max_position=min(config.max_position, longest))


def limited(kind: dict[str, list], limit: int) -> dict[str, list]:
    """At most `limit` items of each, evenly spread; 0 takes all."""
    return {name: [rows[i] for i in evenly_spread(len(rows), limit or len(rows))] for name, rows in kind.items()}


def _beginning(texts: list[str], max_chars: int) -> list[str]:
    """The first texts, up to so many characters in all, the last of them cut; 0 takes all."""
    if not max_chars:
        return texts
    rooms = max_chars - np.cumsum([0, *map(len, texts[:-1])])
    return [text[:room] for text, room in zip(texts, rooms) if room > 0]


def unknown_shares(
    settings: EvaluateSettings,
    texts: dict[str, list],
    questions: dict[str, list],
    pairs: dict[str, list],
    words: dict[str, list],
    tokenizer: Any,
) -> dict[str, float]:
    """By the setting that names them, the text sets and suites of which the tokenizer leaves a thousandth or more of
    the characters unread, with that share; `InputError` for more than `settings.max_unknown`, and for as many items
    whose right answer it reads like a wrong one."""
    read = {f"texts.{name}": documents for name, documents in texts.items()}
    for name, rows in questions.items():
        read[f"multiple_choice.{name}"] = [text for row in rows for text in (row["question"], *row["choices"])]
    for name, rows in pairs.items():
        read[f"minimal_pairs.{name}"] = [row[side] for row in rows for side in ("sentence_good", "sentence_bad")]
    read |= {f"last_words.{name}": [row["text"] for row in rows] for name, rows in words.items()}
    shares = {name: unknown_share(tokenizer, found) for name, found in read.items()}
    for name, share in shares.items():
        if share > settings.max_unknown:
            raise InputError(
                f"evaluate {name}: {share:.1%} of the characters are unknown to the model's tokenizer, so figures "
                "would be of the others: give text that it can write, or raise "
                f"evaluate.max_unknown={settings.max_unknown:g}"
            )
    _check_told_apart(settings, questions, pairs, tokenizer)
    return {name: share for name, share in shares.items() if share >= UNKNOWN_TOLD}


def _check_told_apart(
    settings: EvaluateSettings, questions: dict[str, list], pairs: dict[str, list], tokenizer: Any
) -> None:
    """Warns of items whose right answer has the ids of a wrong one, as with a tokenizer that lowers letters: no model
    could choose between them. `InputError` for more than `settings.max_unknown` of a suite."""
    answers = {f"multiple_choice.{name}": list(map(_right_first, rows)) for name, rows in questions.items()}
    for name, rows in pairs.items():
        answers[f"minimal_pairs.{name}"] = [[row["sentence_good"], row["sentence_bad"]] for row in rows]
    for name, texts in answers.items():
        ids = iter(likelihood.encode_all(tokenizer, [answer for of_item in texts for answer in of_item]))
        read = [[next(ids) for _ in of_item] for of_item in texts]
        if same := [number for number, (right, *wrong) in enumerate(read, 1) if right in wrong]:
            what = f"evaluate {name}: the model's tokenizer reads the right answer like a wrong one in {len(same)} of "
            what += f"{len(read)} items, first item {same[0]}, so that no model can tell them apart"
            if len(same) > settings.max_unknown * len(read):
                raise InputError(f"{what}: leave these out, or raise evaluate.max_unknown={settings.max_unknown:g}")
            warnings.warn(f"{what}; they count as the order has it", InputWarning, stacklevel=2)


def _right_first(row: Mapping[str, Any]) -> list[str]:
    choices = [" " + choice.lstrip() for choice in row["choices"]]
    return [choices.pop(row["gold"]), *choices]


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Puts the setting that names a suite before what is wrong with one of its items."""
    try:
        yield
    except InputError as e:
        raise InputError(f"evaluate {setting}: {e}") from None


def evaluate_model(
    model: tuple[DecoderConfig, Params],
    tokenizer_source: str | pathlib.Path,
    settings: EvaluateSettings,
    find: Callable[[str], pathlib.Path],
    directory: pathlib.Path,
    *,
    mesh: Mesh,
    name: str,
    limit: int | None = None,
    trained_on: Iterable[str] | None = None,
    reference: Callable[[], tuple[DecoderConfig, Params]] | None = None,
    parts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measures `model` and saves its `Items` in `directory`, all at once; what is there of the same `parts` is kept.

    Args:
      find: where a file named in `settings` lies.
      name: shown on the progress bar.
      limit: cut every suite, the probes, and the windows of every text set, to so many items, evenly spread, without a
        progress bar.
      trained_on: the documents that `model` was trained on, in which contaminated items are looked for.
      reference: loads the model of the reference attack.
      parts: setting that names a file -> fingerprint of all that measuring with it depends on; None keeps nothing.

    Returns:
      Means, and whether BOS was added, for the manifest.
    """
    config, params = model
    tokenizer = load_tokenizer(tokenizer_source)
    add_bos, dtype = begins_with_bos(settings, tokenizer), jnp.dtype(settings.dtype)
    *read, probes = read_inputs(settings, find, config, tokenizer)
    index = np.arange(len(probes))
    unknown = unknown_shares(settings, *read, tokenizer) if limit is None else {}
    for setting, share in unknown.items():
        warnings.warn(InputWarning(f"evaluate {setting}: {share:.1%} of it is unknown to the tokenizer"), stacklevel=2)
    if limit is not None:
        read = [read[0], *(limited(kind, limit) for kind in read[1:])]  # of texts, windows are
        index = evenly_spread(len(probes), limit)
        probes = [probes[i] for i in index]
    earlier = Items.earlier(directory) if parts else Items()
    kept = {name for name, of in (parts or {}).items() if earlier.parts.get(name, {}).get("of") == of}
    texts, questions, pairs, words = (
        {name: rows for name, rows in found.items() if f"{kind}.{name}" not in kept}
        for kind, found in zip(("texts", *SUITES), read)
    )
    probes = [] if "probes" in kept else probes
    placed = {"mesh": mesh, "batch_size": settings.batch_size, "dtype": dtype}
    scorer = functools.partial(score, params, config, **placed)
    reader = read_at_once(settings, config)
    items, summary = Items(), {"add_bos": add_bos, "unknown": unknown}
    figures: dict[str, dict[str, float]] = {}
    total = sum(map(len, (texts, questions, pairs, words))) + bool(probes)
    with progress.bar(total=total, desc=f"evaluate {name}", unit="suite", disable=limit is not None) as bar:
        for suite, rows in questions.items():
            with _naming(f"multiple_choice.{suite}"):
                hits = likelihood.multiple_choice(scorer, reader, tokenizer, rows, settings.template, add_bos=add_bos)
            items.capability.update({(suite, rule): hits[rule] for rule in settings.rules})
            bar.update()
        for suite, rows in pairs.items():
            with _naming(f"minimal_pairs.{suite}"):
                items.capability[suite, "acc"] = likelihood.minimal_pairs(scorer, config, tokenizer, rows)
            bar.update()
        for suite, rows in words.items():
            with _naming(f"last_words.{suite}"):
                items.capability[suite, "acc"] = likelihood.last_words(scorer, reader, tokenizer, rows, add_bos=add_bos)
            bar.update()
        for set_name, documents in texts.items():
            if limit is not None:
                windows, starts, of = likelihood.text_windows(reader, tokenizer, documents, settings.context_len)
                chosen = evenly_spread(len(windows), limit)
                scores = scorer([windows[i] for i in chosen], [starts[i] for i in chosen])
                sizes = np.array([s.log_probs.size for s in scores])
                items.nll[set_name], items.documents[set_name] = (
                    (-likelihood.summed_log_probs(scores), sizes),
                    of[chosen],
                )
                continue
            found = likelihood.text_likelihood(scorer, reader, tokenizer, documents, context_len=settings.context_len)
            items.nll[set_name], items.documents[set_name] = (found.nll, found.num_tokens), found.document
            units = ("bits_per_byte", "bits_per_char", "word_perplexity")
            of_set = {f"{unit}/{set_name}": getattr(found, unit) for unit in units}
            figures[f"texts.{set_name}"] = {f"nll/{set_name}": found.nll_per_token, **of_set}
            bar.update()
        if probes:
            bos = config.bos_token_id if add_bos else None
            items.probes["index"] = index
            items.probes.update(memorization.probe_columns(probes))
            items.probes.update(vars(memorization.extract(scorer, probes, bos_token_id=bos)))
            if settings.free_running:
                written = free_running.continue_greedily(params, config, probes, bos_token_id=bos, **placed)
                items.probes["written"] = free_running.padded(written)
                for k in (None, *settings.suffix_lengths):
                    first = [dataclasses.replace(p, suffix=p.suffix[:k]) for p in probes], [c[:k] for c in written]
                    found = vars(approximate.approximate_match(*first, tokenizer))
                    found |= {"graded": free_running.graded_score(*first)}
                    items.probes.update({n if k is None else f"{n}/{k}": values for n, values in found.items()})
            if settings.discoverable:
                sampling = settings.discoverable.sampling()
                found = discoverable.sampled_suffix_log_probs(scorer, probes, sampling, bos_token_id=bos)
                items.probes["sampled_log_prob"] = found
            if settings.nonmembers:
                members = items.probes["group"] != settings.nonmembers
                items = dataclasses.replace(items, members=members)
                whole = [np.concatenate([p.prefix, p.suffix]) for p in probes]
                decoded = tokenizer.batch_decode([ids.tolist() for ids in whole])
                other = reference and functools.partial(score, *reversed(reference()), **placed)
                attacks = membership.membership_scores(
                    scorer,
                    whole,
                    texts=decoded,
                    reference=other,
                    counts=_counts(read[0], config, tokenizer),
                    shots=_shots(settings, items.probes["group"]),
                    bos_token_id=bos,
                )
                items.membership.update(attacks)
            bar.update()
    for suite, rows in (questions | pairs | words).items():
        if (clusters := _cluster(rows, suite)) is not None:
            items.clusters[suite] = clusters
    if trained_on is not None:
        flags = contaminated_items(questions | pairs, trained_on, settings.template)
        items.contaminated.update({suite: np.array(found) for suite, found in flags.items()})
    for setting in settings.files():
        of = earlier.parts[setting]["summary"] if setting in kept else figures.get(setting, {})
        summary |= of
        if parts:
            items.parts[setting] = {"of": parts[setting], "summary": of}
    whole = ((earlier if setting in kept else items).part(setting) for setting in settings.files())
    items = functools.reduce(operator.or_, whole, Items())  # in the order of the settings, whatever came first
    if "exact" in items.probes:
        summary["extraction/all"] = float(items.probes["exact"].mean())
    for (suite, rule), hits in items.capability.items():
        summary[f"capability/{suite}" + ("" if rule == "acc" else f":{rule}")] = float(hits.mean())
    if is_local(mesh) or job.is_first():
        items.save(directory)
    return summary


def _counts(texts: Mapping[str, list[str]], config: DecoderConfig, tokenizer: Any) -> np.ndarray | None:
    """int `[V]`: how often each token stands in the text sets; None without them."""
    if not texts:
        return None
    ids = [likelihood.encode_all(tokenizer, documents) for documents in texts.values()]
    flat = [np.asarray(document, np.int64) for documents in ids for document in documents]
    return np.bincount(np.concatenate(flat), minlength=config.vocab_size)
