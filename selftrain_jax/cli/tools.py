"""The sub-commands of `selftrain` that need no run: models and texts in and out, and checks.

Each takes the parsed arguments and returns the exit code.
"""

import argparse
import sys

from selftrain_jax.cli.push import check_push, push
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_json
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.external import import_corpus
from selftrain_jax.data.training_set import same_tokenizer
from selftrain_jax.distributed.mesh import configure_jax, find_devices
from selftrain_jax.evaluation import leaks, probes, published
from selftrain_jax.evaluation.memorization import load_probes
from selftrain_jax.evaluation.settings import LeakSettings
from selftrain_jax.models import hf, verify
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.report.tables import format_leaks
from selftrain_jax.run.export import convert, export
from selftrain_jax.run.publish import publish


def make_probes(arguments: argparse.Namespace) -> int:
    a = arguments
    arrays = a.prefixes or a.suffixes or a.source
    if sum(map(bool, (a.pairs, a.text, a.dataset, arrays))) != 1:
        raise InputError("probes: give one of --text, --dataset, --pairs, or --prefixes with --suffixes and --source")
    arrays = ("prefixes", "suffixes", "source", "target")
    needed = ("split",) if a.dataset else ("target",) if a.text or a.pairs else arrays
    if missing := [f"--{name}" for name in needed if not getattr(a, name)]:
        raise InputError(f"probes: {', '.join(missing)} is missing; see selftrain probes --help")
    if len(a.prefix_length) > 1 and not a.text:
        raise InputError(f"probes --prefix-length={a.prefix_length}: several lengths are for --text alone")
    lengths = a.prefix_length if len(a.prefix_length) > 1 else a.prefix_length[0]
    drawn = {"prefix_length": lengths, "suffix_length": a.suffix_length, "limit": a.limit, "seed": a.seed}
    if a.pairs:
        counts = probes.text_probes(a.pairs, a.target, a.out)
    elif a.text:
        counts = probes.window_probes(a.text, a.target, a.out, stride=a.stride, **drawn)
    elif a.dataset:
        counts = probes.dataset_probes(a.dataset, a.split, a.out, **drawn)
    else:
        counts = probes.convert_arrays(a.prefixes, a.suffixes, a.source, a.target, a.out)
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) + f": {a.out}")
    return 0


def import_texts(arguments: argparse.Namespace) -> int:
    manifest = import_corpus(
        arguments.source,
        arguments.out,
        arguments.tokenizer,
        field=arguments.field,
        split=arguments.split,
        limit=arguments.limit,
    )
    counts = manifest["provenance"]
    print(
        f"{manifest['num_documents']:,} documents, {manifest['num_tokens']:,} tokens, {counts['num_empty']:,} empty "
        f"texts dropped, {counts['num_with_special_tokens']:,} with special tokens read as text: {arguments.out}"
    )
    return 0


def find_leaks(arguments: argparse.Namespace) -> int:
    a = arguments
    if not a.reference and not a.probes:
        raise InputError("leaks: give --reference=FILE, --probes=FILE or both; see selftrain leaks --help")
    if a.probes and not a.tokenizer:
        raise InputError("leaks --probes needs --tokenizer, the model whose token ids they hold")
    LeakSettings(least_tokens=a.tokens, least_characters=a.characters, show=a.show)
    corpus, tokenizer = read_corpus(a.corpus), load_tokenizer(a.tokenizer) if a.tokenizer else None
    if not tokenizer and not a.characters:
        raise InputError("leaks --characters=0 leaves tokens alone, and these need --tokenizer")
    known = [k for path in a.reference for k in leaks.known_texts(path, path, tokenizer, a.tokens, a.characters)]
    if a.probes:
        planted = load_probes(a.probes, hf.load_config(resolve_model(a.tokenizer, weights=False)))
        known += leaks.known_probes(planted, tokenizer, a.tokens, a.characters)
    own = a.tokenizer and same_tokenizer(corpus.manifest["provenance"], a.tokenizer)
    rows = leaks.find_leaks(corpus, known, tokenizer, encode=not own, show=a.show)
    if a.out:
        write_json(a.out, rows)
    print(format_leaks(rows), end="")
    return 0


def convert_model(arguments: argparse.Namespace) -> int:
    find_devices()
    convert(arguments.source, arguments.out, revision=arguments.revision, dtype=arguments.dtype)
    print(f"Orbax arrays: {arguments.out}")
    return 0


def export_model(arguments: argparse.Namespace) -> int:
    _check_push(arguments)
    find_devices()
    export(arguments.source, arguments.out, model=arguments.model, step=arguments.step, dtype=arguments.dtype)
    print(f"Hugging Face model: {arguments.out}")
    return _push(arguments, "model")


def publish_corpus(arguments: argparse.Namespace) -> int:
    _check_push(arguments)
    count = publish(arguments.source, arguments.out)
    print(f"Hugging Face data set: {arguments.out}, {count:,} documents")
    return _push(arguments, "dataset")


def _check_push(arguments: argparse.Namespace) -> None:
    if arguments.push:
        check_push(arguments.push)
    elif arguments.public:
        raise InputError("--public says who may see what --push uploads: give --push=USER/NAME, or leave it out")


def _push(arguments: argparse.Namespace, kind: str) -> int:
    if not arguments.push:
        return 0
    try:
        print(f"pushed: {push(arguments.out, arguments.push, kind, public=arguments.public)}")
    except KeyboardInterrupt:  # here something was written
        print(f"selftrain: interrupted; {arguments.out} is whole, but was not pushed", file=sys.stderr)
        return 1
    return 0


def verify_model(arguments: argparse.Namespace) -> int:
    model, revision, item = arguments.model, arguments.revision, None
    if arguments.arc_easy is not None:
        item = published.first_arc_easy_item(arguments.arc_easy, model, revision)
    configure_jax()
    find_devices()
    verdict = verify.verify(model, revision, arguments.dtype or verify.DTYPES)
    print(verify.format_tables(verdict) + "\n", flush=True)
    ok, outcome = verdict.ok, [verify.format_verdict(verdict)]
    if item is not None:
        check = published.check_arc_easy(item, model, revision)
        print(published.format_check(check) + "\n")
        ok &= check.ok
        outcome.append(f"ARC-Easy figures {'agree' if check.ok else 'differ'} (max gap {check.max_gap:.1e} nats)")
    print(f"{'OK' if ok else 'DIFFERENT'}: {'; '.join(outcome)}")
    return 0 if ok else 1
