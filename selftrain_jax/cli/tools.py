"""The sub-commands of `selftrain` that need no run: models and texts in and out, and checks.

Each takes the parsed arguments and returns the exit code.
"""

import argparse

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.external import import_corpus
from selftrain_jax.distributed.mesh import configure_jax, find_devices
from selftrain_jax.evaluation import probes, published
from selftrain_jax.models import verify
from selftrain_jax.run.export import convert, export


def make_probes(arguments: argparse.Namespace) -> int:
    a = arguments
    arrays = a.prefixes or a.suffixes or a.source
    if sum(map(bool, (a.pairs, a.text, a.dataset, arrays))) != 1:
        raise InputError("probes: give one of --text, --dataset, --pairs, or --prefixes with --suffixes and --source")
    arrays = ("prefixes", "suffixes", "source", "target")
    needed = ("split",) if a.dataset else ("target",) if a.text or a.pairs else arrays
    if missing := [f"--{name}" for name in needed if not getattr(a, name)]:
        raise InputError(f"probes: {', '.join(missing)} is missing; see selftrain probes --help")
    drawn = {"prefix_length": a.prefix_length, "suffix_length": a.suffix_length, "limit": a.limit, "seed": a.seed}
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


def convert_model(arguments: argparse.Namespace) -> int:
    find_devices()
    convert(arguments.source, arguments.out, revision=arguments.revision, dtype=arguments.dtype)
    print(f"Orbax arrays: {arguments.out}")
    return 0


def export_model(arguments: argparse.Namespace) -> int:
    find_devices()
    export(arguments.source, arguments.out, model=arguments.model, step=arguments.step, dtype=arguments.dtype)
    print(f"Hugging Face model: {arguments.out}")
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
