"""The lm-evaluation-harness model: its three kinds of request, answered by `score.py` and by cached decoding.

`HarnessModel` is handed to `lm_eval.simple_evaluate` as an instance. Which tokens are scored given which is what the
harness's own `hf` model decides for the same checkpoint (0.4.10 and later), so that figures compare; nothing needs
PyTorch. Importing this module needs the extra `eval`."""

import dataclasses
import functools
import itertools
import pathlib
import warnings
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.randomness import seed_key
from selftrain_jax.evaluation.batches import check_batch_size, in_batches
from selftrain_jax.evaluation.generation import Generation, read_generation
from selftrain_jax.evaluation.likelihood import rolling_windows
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params
from selftrain_jax.models.files.tokenizer import call_tokenizer, check_tokenizer, known_ids, load_tokenizer
from selftrain_jax.sampling import placement
from selftrain_jax.sampling.continuation import continue_prompts

try:
    from lm_eval.api.model import LM
except ImportError as e:
    raise InputError(
        f"this needs lm-evaluation-harness 0.4.10 or later ({e}): pip install 'selftrain_jax[eval]'"
    ) from None


class HarnessModel(LM):
    """A model of ours for `simple_evaluate(model=...)`.

    Equal requests are computed once; rows are sorted by length, batched, and spread over the mesh. What is drawn (not
    greedy) depends on `seed` and on a request's place in its list alone.
    """

    def __init__(
        self,
        params: Params,
        config: DecoderConfig,
        tokenizer: Any,
        *,
        mesh: Mesh | None = None,
        batch_size: int = 64,
        dtype: Any = jnp.float32,
        seed: int = 0,
    ):
        """
        Args:
          tokenizer: a transformers tokenizer, or the directory of one.
          mesh: devices over which the rows of a batch are spread.
          batch_size: rows per pass.
          dtype: compute dtype; the projection to the vocabulary is fp32 always.
          seed: of drawn text.
        """
        super().__init__()
        check_batch_size(batch_size)
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, (str, pathlib.Path)) else tokenizer
        check_tokenizer(config, self.tokenizer)
        self.model_config, self.mesh, self.batch_size, self.seed = config, mesh, batch_size, seed
        params = jax.tree.map(jnp.asarray, params)
        self._params, self._dtype = params, jnp.dtype(dtype)
        self._allowed = known_ids(config, self.tokenizer)
        self._prefix_text = self.tokenizer.decode([self.prefix_token_id])
        self._score = functools.partial(score, params, config, mesh=mesh, batch_size=batch_size, dtype=self._dtype)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS; the model's where it names none."""
        named = self.tokenizer.eos_token_id
        return self.model_config.eos_token_id if named is None else named

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: the tokenizer's BOS, else its EOS; the model's BOS where it names
        neither."""
        named = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.model_config.bos_token_id)
        return next(i for i in named if i is not None)

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self.model_config.max_position

    @property
    def max_gen_toks(self) -> int:
        """Tokens generated where a task sets no limit, as in the harness's `hf` model."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """By which the harness keeps its requests apart from those of other tokenizers."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text. The tokenizer's own rule says whether BOS comes first (Pythia's: no); a text that
        starts with it gets no second one."""
        found: list[list[int]] = [[] for _ in texts]
        has_prefix = [bool(self._prefix_text) and text.startswith(self._prefix_text) for text in texts]
        for value in (False, True):
            chosen = [i for i, has in enumerate(has_prefix) if has == value]
            for i, ids in zip(chosen, self._encode([texts[i] for i in chosen], special=not value)):
                found[i] = ids
        return found

    def _encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return call_tokenizer(self.tokenizer, texts, add_special_tokens=special)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of (context, continuation): those of both together, cut where the context's own end.

        Spaces at the end of a context belong to the continuation; an empty context becomes the prefix token, unless the
        continuation starts with that.

        Raises:
          InputError: a continuation without tokens of its own, or longer than the context window.
        """
        moved = []
        for context, continuation in pairs:
            kept = context.rstrip()
            moved.append((kept, context[len(kept) :] + continuation))
        contexts = dict.fromkeys(context for context, _ in moved if context)
        contexts = dict(zip(contexts, self.encode(list(contexts))))
        whole = iter(self.encode([context + continuation for context, continuation in moved if context]))
        alone = iter(self._encode([continuation for context, continuation in moved if not context], special=False))
        encoded = []
        for (context, _), (_, continuation) in zip(moved, pairs):
            head = contexts[context] if context else [self.prefix_token_id]
            tail = next(whole if context else alone)
            if context or tail[:1] == head:
                tail = tail[len(head) :]
            if not 0 < len(tail) <= self.max_length:
                raise InputError(
                    f"continuation {continuation[:80]!r} of context {context[-40:]!r} has {len(tail)} tokens; a model "
                    f"with a context of {self.max_length} scores 1 to {self.max_length}"
                )
            encoded.append((head, tail))
        return encoded

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding gives it) of each continuation given its context.

        What is longer than the model's context loses its beginning.
        """
        pairs = [request.args for request in requests]
        answers = self._log_likelihoods(self.encode_pairs(pairs))
        for pair, answer in zip(pairs, answers):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text in nats: every token once, in windows of the model's whole context.

        The first window starts at the prefix token; the last one reaches back, so that its context is as long as it can
        be."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for i, ids in enumerate(self.encode(texts)):
            for window, start in rolling_windows(ids, self.prefix_token_id, self.max_length):
                windows.append((window[:start].tolist(), window[start:].tolist()))
                owners.append(i)
        totals = [0.0] * len(texts)
        for i, (value, _) in zip(owners, self._log_likelihoods(windows)):
            totals[i] += value
        for text, total in zip(texts, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _log_likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        keys = [(tuple(context), tuple(continuation)) for context, continuation in pairs]
        distinct = list(dict.fromkeys(keys))
        self._warn_of_cut([len(context) + len(tail) - 1 for context, tail in distinct], self.max_length)
        sequences = [np.array((context + tail)[-self.max_length - 1 :], np.int32) for context, tail in distinct]
        starts = [len(sequence) - len(tail) for sequence, (_, tail) in zip(sequences, distinct)]
        scores = self._score(sequences, starts) if sequences else []
        found = {
            key: (float(s.log_probs.sum(dtype=np.float64)), bool(s.hits.all())) for key, s in zip(distinct, scores)
        }
        return [found[key] for key in keys]

    def _warn_of_cut(self, lengths: Sequence[int], room: int) -> None:
        if cut := sum(length > room for length in lengths):
            what = (
                f"tasks: {cut} of {len(lengths)} different prompts are longer than the {room} tokens that the model's "
                "context has for them, and lose their beginning: examples in the prompt, or of the question itself"
            )
            warnings.warn(what, InputWarning, stacklevel=3)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, cut before the first of the request's `until` strings and before any of
        the model's stop tokens or the tokenizer's EOS.

        A context that leaves no room for the tokens asked for loses its beginning.
        """
        work: dict[Generation, dict[Any, list[int]]] = {}
        for i, request in enumerate(requests):
            context, settings = request.args
            generation = read_generation(settings, self.max_gen_toks)
            if generation.max_new_tokens >= self.max_length:
                raise InputError(
                    f"max_gen_toks={generation.max_new_tokens} leaves no room for a prompt in the model's context of "
                    f"{self.max_length}; lower it"
                )
            same = context if generation.sampling is None else (context, i)  # drawn texts are each their own
            work.setdefault(generation, {}).setdefault(same, []).append(i)
        answers = [""] * len(requests)
        with progress.bar(total=len(requests), desc="generate", unit="text", disable=disable_tqdm) as bar:
            for generation, groups in work.items():
                owners = list(groups.values())
                prompts = self.encode([requests[group[0]].args[0] for group in owners])
                room = self.max_length - generation.max_new_tokens
                self._warn_of_cut(list(map(len, prompts)), room)
                prompts = [np.array(ids[-room:] or [self.prefix_token_id], np.int32) for ids in prompts]
                rows = min(self.batch_size, 1 << (len(prompts) - 1).bit_length())

                def compute(chosen):
                    return self._continue(
                        generation, [prompts[k] for k in chosen], [owners[k][0] for k in chosen], rows
                    )

                def finish(k, text):
                    for i in owners[k]:
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(owners[k]))

                in_batches(compute, [len(prompt) for prompt in prompts], rows, finish=finish)
        return answers

    def _continue(self, generation: Generation, prompts: list[np.ndarray], places: list[int], rows: int) -> list[str]:
        # Decoded text no longer holds special tokens, such as <|im_end|> where it is not the model's own stop token.
        ends = {self._special_ids[stop] for stop in generation.until if stop in self._special_ids}

        def decode(ids):
            kept = itertools.takewhile(lambda i: i not in ends, map(int, ids))
            return self.tokenizer.decode(list(kept), skip_special_tokens=True)

        def finished(row, ids):
            return any(int(i) in ends for i in ids) or any(stop in decode(ids) for stop in generation.until if stop)

        keys = None
        if generation.sampling is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(seed_key(self.seed), jnp.asarray(places, jnp.uint32))
        continued = continue_prompts(
            self._decoding_params,
            self._decoding_config,
            prompts,
            generation.max_new_tokens,
            sampling=generation.sampling,
            keys=keys,
            finished=finished,
            mesh=self.mesh,
            rows=rows,
            allowed=self._allowed,
            dtype=self._dtype,
        )
        texts = []
        for ids in continued:
            text = decode(ids)
            for stop in generation.until:
                text = text.split(stop)[0] if stop else text
            texts.append(text)
        return texts

    @functools.cached_property
    def _special_ids(self) -> dict[str, int]:
        return {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @functools.cached_property
    def _decoding_config(self) -> DecoderConfig:
        """The model's, with the tokenizer's EOS among its stop tokens."""
        config, named = self.model_config, self.eot_token_id
        more = () if named in config.stop_ids else (named,)
        return dataclasses.replace(config, stop_token_ids=config.stop_token_ids + more)

    @functools.cached_property
    def _decoding_params(self) -> Params:
        """The weights once more, as the decode loop reads them; made when a task first generates."""
        return placement.prepare(self._params, self.model_config, mesh=self.mesh, dtype=self._dtype)
