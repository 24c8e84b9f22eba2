"""A model's documents as a corpus on disk, shard by shard, so that a killed run draws only what is missing."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from typing import Any, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import read_json
from selftrain_jax.core.randomness import seed_key
from selftrain_jax.core.records import plain
from selftrain_jax.data.corpus import CorpusWriter, Document
from selftrain_jax.distributed import job
from selftrain_jax.distributed.mesh import batch_ways, is_local
from selftrain_jax.models import hf
from selftrain_jax.models.files.fingerprints import model_fingerprint
from selftrain_jax.models.files.tokenizer import (
    check_tokenizer,
    known_ids,
    load_tokenizer,
    start_ids,
    tokenizer_fingerprint,
)
from selftrain_jax.sampling import placement, sampler


def sampling_dtype(settings) -> str:
    """The name of the dtype that `settings` mean on this machine."""
    return jnp.dtype(placement.default_dtype() if settings.dtype == "auto" else settings.dtype).name


def sample_corpus(
    model: str | pathlib.Path, settings, path: str | pathlib.Path, *, mesh: Mesh, name: str
) -> dict[str, Any]:
    """Draws `settings.num_samples` documents from the model and writes them as a finished corpus: `draw_shards`, then,
    on process 0, `finish_corpus`. Arguments as there; returns the corpus manifest."""
    draw_shards(model, settings, path, mesh=mesh, name=name)
    return job.on_first("corpus finished", lambda: finish_corpus(model, settings, path, name=str(model)))


def draw_shards(model: str | pathlib.Path, settings, path: str | pathlib.Path, *, mesh: Mesh, name: str) -> None:
    """Draws those of `settings.num_samples` documents that are not there yet, and writes them as shards of a corpus.

    In a job of several processes each calls this with a mesh of its own devices, draws every so-many-th shard, and
    returns when all are done; no tensor crosses between hosts. (With a mesh that spans processes, for a model that one
    host cannot hold, all of them draw the same waves and the first one writes.)

    Args:
      model: Hugging Face directory.
      path: the corpus folder, shared by the processes; documents that are there already are kept.
      mesh: devices.
      name: shown on the progress bar.
    """
    config = hf.load_config(model)
    tokenizer = load_tokenizer(model)
    check_tokenizer(config, tokenizer)
    allowed = known_ids(config, tokenizer)
    sampling = dataclasses.replace(settings.sampling(), start=start_ids(settings.start, config, tokenizer))
    sampler.check(config, sampling, settings.batch_size, allowed)
    first = jax.process_index() == 0
    _refuse_another(pathlib.Path(path), model, settings)
    if not first:  # the first process may have shards of a smaller corpus to rename
        job.barrier("corpus folder ready")
    writer = CorpusWriter(path, settings.num_samples, settings.shard_size)
    if first:
        job.barrier("corpus folder ready")
    missing = writer.missing_shards()
    job.barrier("missing shards counted")
    spans_processes = not is_local(mesh)
    if spans_processes and batch_ways(mesh) > 1:
        raise InputError(
            f"sampling on a mesh that spans processes needs data=1 and fsdp=1, not {dict(mesh.shape)}: give each "
            "process a mesh of its own devices, or use the tensor axis alone"
        )
    if not spans_processes:
        missing = missing[jax.process_index() :: jax.process_count()]
    if missing:
        dtype = sampling_dtype(settings)
        kept = {d.id: d for index, _ in missing for d in writer.partial(index)}
        ids = [i for _, shard in missing for i in shard if i not in kept]
        # The weights as loaded are let go before the first wave: only what `prepare` made of them stays.
        weights = placement.prepare(
            hf.load_pretrained(model, dtype=dtype, mesh=mesh, rules=placement.SAMPLING_RULES)[1],
            config,
            mesh=mesh,
            dtype=dtype,
        )
        waves = sampler.sample_waves(
            weights,
            config,
            sampling,
            seed_key(settings.seed),
            ids,
            mesh=mesh,
            batch_size=settings.batch_size,
            allowed=allowed,
            dtype=dtype,
        )
        shown = _shown(waves, name, total=len(kept) + len(ids), todo=len(ids))
        _write(writer if first or not spans_processes else None, missing, kept, shown, tokenizer)
    job.barrier("all shards written")


def finish_corpus(model: str | pathlib.Path, settings, path: str | pathlib.Path, *, name: str) -> dict[str, Any]:
    """Makes a corpus of the shards that `draw_shards` wrote in `path`; `name` stands in the manifest for the model.
    Returns the manifest."""
    provenance = {"model": name, **_provenance(model, settings)}
    return CorpusWriter(path, settings.num_samples, settings.shard_size).finalize(provenance)


def _provenance(model: str | pathlib.Path, settings) -> dict[str, Any]:
    config, tokenizer = hf.load_config(model), load_tokenizer(model)
    return {
        "model_fingerprint": model_fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(model),
        "vocab_size": int(known_ids(config, tokenizer).sum()),
        "start_ids": list(start_ids(settings.start, config, tokenizer)),
        "stop_ids": list(config.stop_ids),
        "document_end_id": config.eos_token_id,
        "settings": plain(dataclasses.asdict(settings) | {"dtype": sampling_dtype(settings)}),
    }


def _refuse_another(path: pathlib.Path, model: str | pathlib.Path, settings) -> None:
    """Raises `InputError` where `path` holds a corpus that another model wrote, or this one with other settings."""
    if not (path / "manifest.json").is_file():
        return
    made, asked = read_json(path / "manifest.json", "corpus manifest")["provenance"], _provenance(model, settings)
    of_size = dict.fromkeys(("num_samples", "batch_size", "shard_size"))
    made, asked = (of | of.get("settings", {}) | {"settings": None} | of_size for of in (made, asked))
    if changed := [name for name in asked if made.get(name) != asked[name]]:
        raise InputError(f"corpus {path} was drawn with another {changed[0]}: name another folder, or remove it")


def _write(
    writer: CorpusWriter | None,
    shards: Sequence[tuple[int, Sequence[int]]],
    documents: dict[int, Document],
    waves: Iterator[sampler.Samples],
    tokenizer,
) -> None:
    """Writes every shard as soon as its documents are there. `documents` are those that need not be drawn.

    Text is decoded and shards are written in a thread beside the next wave, which leaves the host idle.
    """
    # While TFDS is imported, `import` gives other threads its lazy modules: so not in the thread, beside a compilation.
    import tensorflow_datasets.proto  # noqa: F401

    waiting = list(shards)

    def finish(wave):
        documents.update((d.id, d) for d in _documents(wave, tokenizer))
        while waiting and documents.keys() >= set(waiting[0][1]):
            index, ids = waiting.pop(0)
            writer.write_shard(index, [documents.pop(i) for i in ids])

    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.closing(waves):
        pending = None
        for wave in waves:
            if pending is not None:
                pending.result()
            pending = pool.submit(finish, wave) if writer is not None else None
        if pending is not None:
            pending.result()


def _documents(wave: sampler.Samples, tokenizer) -> list[Document]:
    kept = [tokens[: n - stopped] for tokens, n, stopped in zip(wave.tokens, wave.lengths, wave.stopped)]
    texts = tokenizer.batch_decode(kept)
    return [
        Document(int(i), tokens[:n], log_probs[:n], "eos" if stopped else "length", text)
        for i, tokens, log_probs, n, stopped, text in zip(
            wave.ids, wave.tokens, wave.log_probs, wave.lengths, wave.stopped, texts
        )
    ]


def _shown(waves: Iterator[sampler.Samples], name: str, total: int, todo: int) -> Iterator[sampler.Samples]:
    """The waves, with tokens per second, mean length, share stopped by EOS and mean NLL so far on a progress bar."""
    begin, documents, tokens, stopped, nll = time.perf_counter(), 0, 0, 0, 0.0
    with progress.bar(
        total=total, initial=total - todo, desc=f"sample {name}", unit="doc", disable=jax.process_index() != 0
    ) as bar:
        for wave in waves:
            documents += len(wave.ids)
            tokens += int(wave.lengths.sum())
            stopped += int(wave.stopped.sum())
            nll -= float(wave.log_probs.sum(dtype=float))
            bar.set_postfix_str(
                f"{tokens / (time.perf_counter() - begin):,.0f} tok/s, length {tokens / documents:.1f}, "
                f"eos {stopped / documents:.0%}, nll {nll / tokens:.3f}",
                refresh=False,
            )
            bar.update(len(wave.ids))
            yield wave
