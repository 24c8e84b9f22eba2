"""A model's documents as a corpus on disk, shard by shard, so that a killed run draws only what is missing."""

import dataclasses
import pathlib
import time
from typing import Any, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selftrain_jax.data.corpus import CorpusWriter, Document
from selftrain_jax.models import hf
from selftrain_jax.models.tokenizer import check_tokenizer, load_tokenizer, tokenizer_fingerprint
from selftrain_jax.sampling import sampler


def sample_corpus(model: str | pathlib.Path, settings, path: str | pathlib.Path, *, mesh: Mesh, name: str) -> dict[str, Any]:
    """Draws `settings.num_samples` documents from the model and writes them as a finished corpus.

    Args:
      model: Hugging Face directory.
      settings: `settings.SampleSettings`.
      path: the corpus folder; shards that are there already are kept.
      mesh: devices.
      name: shown on the progress bar.

    Returns:
      The corpus manifest.
    """
    from tqdm import tqdm

    config = hf.load_config(model)
    tokenizer = load_tokenizer(model)
    check_tokenizer(config, tokenizer)
    vocab_limit = min(len(tokenizer), config.vocab_size)
    sampler.check(config, settings.sampling(), settings.batch_size, vocab_limit)
    writer = CorpusWriter(path, settings.num_samples, settings.shard_size)
    missing = writer.missing_shards()
    if missing:
        _, params = hf.load_pretrained(model, mesh=mesh)
        key = jax.random.key(settings.seed)
        todo = sum(len(ids) for _, ids in missing)
        done = settings.num_samples - todo
        with tqdm(
            total=settings.num_samples, initial=done, desc=f"sample {name}", unit="doc", dynamic_ncols=True
        ) as bar:
            progress = _Progress(bar)
            for index, ids in missing:
                waves = sampler.sample_waves(
                    params, config, settings.sampling(), key, list(ids),
                    mesh=mesh, batch_size=settings.batch_size, vocab_limit=vocab_limit, dtype=jnp.dtype(settings.dtype),
                )  # fmt: skip
                writer.write_shard(index, [d for wave in waves for d in progress.count(_documents(wave, tokenizer))])
    return writer.finalize({
        "model": str(model),
        "model_fingerprint": hf.model_fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(model),
        "vocab_size": vocab_limit,
        "settings": dataclasses.asdict(settings),
    })


def _documents(wave: sampler.Samples, tokenizer) -> list[Document]:
    kept = [tokens[: n - stopped] for tokens, n, stopped in zip(wave.tokens, wave.lengths, wave.stopped)]
    texts = tokenizer.batch_decode(kept)
    return [
        Document(int(i), tokens[:n], log_probs[:n], "eos" if stopped else "length", text)
        for i, tokens, log_probs, n, stopped, text in zip(
            wave.ids, wave.tokens, wave.log_probs, wave.lengths, wave.stopped, texts
        )
    ]


class _Progress:
    """Tokens per second, mean length, share stopped by EOS and mean NLL of what has been drawn so far."""

    def __init__(self, bar):
        self._bar, self._start = bar, time.perf_counter()
        self._documents = self._tokens = self._stopped = 0
        self._nll = 0.0

    def count(self, documents: list[Document]) -> Iterator[Document]:
        self._documents += len(documents)
        self._tokens += sum(len(d.tokens) for d in documents)
        self._stopped += sum(d.stop_reason == "eos" for d in documents)
        self._nll -= sum(float(d.log_probs.sum()) for d in documents)
        self._bar.update(len(documents))
        self._bar.set_postfix_str(
            f"{self._tokens / (time.perf_counter() - self._start):,.0f} tok/s, "
            f"length {self._tokens / self._documents:.1f}, eos {self._stopped / self._documents:.0%}, "
            f"nll {self._nll / self._tokens:.3f}"
        )
        yield from documents
