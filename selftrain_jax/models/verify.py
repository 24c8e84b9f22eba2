"""Our model against transformers and PyTorch on the same checkpoint: how far apart are logits and hidden states?

The reference runs on the CPU, one dtype at a time, before our parameters are loaded; ours runs on the default device.
PyTorch is needed here and nowhere else.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib.util
import os
import pathlib
import re
from typing import Any, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Block, Decoder, Params
from selftrain_jax.models.families import FAMILIES
from selftrain_jax.models.files.fingerprints import is_converted
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import (
    call_tokenizer,
    check_tokenizer,
    import_transformers,
    known_ids,
    load_tokenizer,
)

DTYPES = ("fp32", "bf16")
LOGIT_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-5
"""Some ten times the rounding of an fp32 pass that sums in another order; a wrong model is off by 1e-3 and more."""
ROUNDING_FACTOR = 4
"""So many times its own rounding may transformers be from us, in a model that amplifies rounding beyond the rest."""

_PAIRS = (
    ("ours fp32", "transformers fp32"),
    ("ours bf16", "transformers bf16"),
    ("ours bf16", "transformers fp32"),
    ("transformers bf16", "transformers fp32"),
)
_LONGEST = 512
_TEXTS = (
    "The river rose slowly in the night, and by the morning the lower fields were under water. Nobody in the village "
    "was surprised: it had happened in 1953, and again in 1997.",
    "def area(radius):\n    return 3.14159 * radius**2\n\n# Größe: 12 µm, température −4 °C, 東京\n",
)


@dataclasses.dataclass(frozen=True)
class LogitGap:
    """Distance between two models' logits, over all positions of all prompts."""

    left: str  # "ours fp32", ...
    right: str
    max: float
    mean: float
    same_argmax: float  # share of positions in [0, 1]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    model: str
    backend: str  # where ours ran: "cpu", "gpu", "tpu"
    num_prompts: int
    num_positions: int
    largest_logit: float  # absolute value, fp32 reference
    rounding: float | None  # largest gap of transformers in fp32 from itself in fp64; None where it was not needed
    logits: tuple[LogitGap, ...]  # the first is ours against theirs in fp32
    layers: tuple[tuple[str, float], ...]  # (name, relative gap in fp32: max |a - b| / max |b|, worst prompt)

    @property
    def tolerance(self) -> float:
        """Largest fp32 gap that passes: 1e-4, but never less than 1e-5 of the largest logit.

        The logits of pythia-70m lie near 1,070 (transformers' own tests), where neighbouring fp32 numbers are 1.2e-4
        apart: no two implementations can agree within 1e-4 there. Some models amplify rounding further (Gemma 3 270M,
        on random ids): where that is not enough, four times the rounding of the reference itself is.
        """
        rounding = ROUNDING_FACTOR * (self.rounding or 0.0)
        return max(LOGIT_TOLERANCE, RELATIVE_TOLERANCE * self.largest_logit, rounding)

    @property
    def ok(self) -> bool:
        return self.logits[0].max <= self.tolerance

    @property
    def first_divergence(self) -> str | None:
        """The first place whose relative gap is not below 1e-5, from the embedding to the output layer."""
        above = (name for name, gap in self.layers if not gap <= RELATIVE_TOLERANCE)
        return next(above, None if self.ok else "output layer")


def verify(model: str | os.PathLike, revision: str | None = None, dtypes: Sequence[str] = DTYPES) -> Verdict:
    """Compares our forward pass with that of transformers on a few fixed prompts.

    Args:
      model: a local directory or a hub name.
      revision: branch, tag or commit of a hub name.
      dtypes: compute dtypes, of `DTYPES`; fp32 is always measured since it decides. In bf16 both sides are compared
        with the fp32 reference too, which tells whose rounding is the better one. The reference runs in fp64 besides
        (but for its norms, which are fp32) when a model would not pass otherwise.

    Raises:
      InputError: PyTorch is not installed, or the checkpoint cannot be used by us or by transformers.
    """
    hf.load_config(resolve_model(model, revision, weights=False))
    if importlib.util.find_spec("torch") is None:
        raise InputError("verify compares with transformers on PyTorch, which is not installed here: pip install torch")
    directory = resolve_model(model, revision)
    if is_converted(directory):
        raise InputError(f"{directory} holds Orbax arrays, which transformers cannot read: `selftrain export` it first")
    if (directory / "adapter_config.json").is_file() and importlib.util.find_spec("peft"):
        raise InputError(
            f"{directory}: transformers would put an adapter into the model (adapter_config.json), and peft may import "
            "what that names; remove the file, or uninstall peft"
        )
    config = hf.check_pretrained(directory)
    prompts = make_prompts(config, directory)
    theirs, their_states = _reference(directory, prompts, "fp32")
    sets = {"transformers fp32": theirs}
    if "bf16" in dtypes:
        sets["transformers bf16"], _ = _reference(directory, prompts, "bf16")

    _, params = hf.load_pretrained(directory)
    params = jax.device_put(params)
    # Accelerators multiply fp32 matrices at a lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        sets["ours fp32"] = _all_logits(config, params, prompts, jnp.float32)
        layers = _layer_gaps(config, params, prompts, their_states)
    if "bf16" in dtypes:
        sets["ours bf16"] = _all_logits(config, params, prompts, jnp.bfloat16)
    verdict = Verdict(
        model=os.fspath(model) + (f" at revision {revision}" if revision else ""),
        backend=jax.default_backend(),
        num_prompts=len(prompts),
        num_positions=len(theirs),
        largest_logit=float(np.max(np.abs(theirs))),
        rounding=None,
        logits=tuple(_logit_gap(sets, left, right) for left, right in _PAIRS if {left, right} <= sets.keys()),
        layers=layers,
    )
    if verdict.ok or not np.isfinite(verdict.logits[0].max):
        return verdict
    sets["transformers fp64"], _ = _reference(directory, prompts, "fp64")
    exact = [_logit_gap(sets, f"{who} fp32", "transformers fp64") for who in ("ours", "transformers")]
    return dataclasses.replace(verdict, rounding=exact[1].max, logits=(*verdict.logits, *exact))


def make_prompts(config: DecoderConfig, directory: pathlib.Path) -> list[np.ndarray]:
    """Token ids int32 `[1, T]`, the same at every call: BOS alone, random ids of several lengths, and, where there is a
    tokenizer, two texts. Random ids are of those that the tokenizer has."""
    known, texts = np.arange(config.vocab_size), []
    if (directory / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(directory)
        check_tokenizer(config, tokenizer)
        known = np.flatnonzero(known_ids(config, tokenizer))
        texts = call_tokenizer(tokenizer, _TEXTS)
    longest = min(config.max_position, _LONGEST)
    rng = np.random.default_rng(0)
    # One short of the longest: no multiple of any block size.
    lengths = sorted({min(n, longest) for n in (7, 64, max(longest - 1, 1))})
    rows = [
        [config.bos_token_id],
        *(known[rng.integers(0, len(known), n)] for n in lengths),
        *(ids[:longest] for ids in texts if ids),
    ]
    return [np.asarray(row, np.int32)[None] for row in rows]


def hidden_states(
    config: DecoderConfig, params: Params, tokens: Int[Array, "B T"]
) -> Iterator[tuple[str, Float[Array, "B T D"]]]:
    """(name, state) of the embedding, of every layer's output, and of the final norm, in fp32."""
    model = Decoder(config).bind({"params": params})
    x, rotary = model.enter(tokens, jnp.arange(tokens.shape[1]))
    yield "embedding", x
    for i in range(config.num_layers):
        x = _one_layer(config, config.layer(i), params["layers"], i, x, rotary)
        yield f"layer {i}", x
    yield "final norm", model.final_norm(x)


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def _one_layer(config, layer, layers, i, x, rotary):
    params = jax.tree.map(lambda leaf: leaf[i], layers)
    (x, _), _ = Block(config, layer).apply({"params": params}, (x, None), rotary, None, 0)
    return x


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: Decoder, params: Params, tokens: Int[Array, "1 T"]) -> Float[Array, "T V"]:
    return model.apply({"params": params}, model.apply({"params": params}, tokens), method="logits")[0]


def _all_logits(config: DecoderConfig, params: Params, prompts: list[np.ndarray], dtype: Any) -> np.ndarray:
    """fp32 `[positions of all prompts, V]`."""
    model = Decoder(config, dtype=dtype)
    return np.concatenate([np.asarray(_logits(model, params, tokens)) for tokens in prompts])


def _layer_gaps(config, params, prompts, their_states) -> tuple[tuple[str, float], ...]:
    worst: dict[str, float] = {}
    for tokens, expected in zip(prompts, their_states, strict=True):
        for (name, found), state in zip(hidden_states(config, params, tokens), expected, strict=True):
            gap = float(np.max(np.abs(np.asarray(found) - state)) / np.max(np.abs(state)))
            worst[name] = float(np.maximum(worst.get(name, 0.0), gap))  # unlike max(), keeps NaN
    return tuple(worst.items())


def _logit_gap(sets: dict[str, np.ndarray], left: str, right: str) -> LogitGap:
    a, b = sets[left], sets[right]
    gap = np.abs(a - b)
    same = np.mean(np.argmax(a, axis=-1) == np.argmax(b, axis=-1))
    return LogitGap(left, right, float(gap.max()), float(gap.mean(dtype=np.float64)), float(same))


def _reference(directory: pathlib.Path, prompts: list[np.ndarray], dtype: str) -> tuple[np.ndarray, list]:
    """Logits as fp32 `[positions, V]` and, for fp32, per prompt the states that `hidden_states` yields."""
    with _quiet(import_transformers()) as transformers:
        import torch

        # Some settings name code on the hub that transformers would fetch and run, others ask for a list of any length.
        raw = files.read_json(directory / "config.json", "model configuration")
        config = {name: value for name, value in raw.items() if not re.search("implementation|num_labels", name)}
        kind, family = transformers.CONFIG_MAPPING[raw["model_type"]], FAMILIES[raw["model_type"]]
        try:
            model, loading = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind].from_pretrained(
                directory,
                config=kind.from_dict(config),
                attn_implementation="eager",  # PyTorch's own leaves out the soft-cap of scores
                dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[dtype],
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as e:  # each fault has a class of its own
            raise InputError(
                f"transformers cannot load {directory}, whose tensors are complete: {one_line(e)[:300]}"
            ) from None
    if loading["missing_keys"]:
        raise InputError(f"{directory}: transformers does not find {min(loading['missing_keys'])!r}, which is there")
    model.eval()
    last = []  # transformers hands out the last layer's state after the final norm only
    final_norm = model.get_submodule(family.prefix + family.final_norm)
    final_norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
    logits, states = [], []
    with torch.no_grad():
        for tokens in prompts:
            out = model(torch.from_numpy(tokens).long(), output_hidden_states=dtype == "fp32", use_cache=False)
            logits.append(out.logits[0].float().numpy())
            if dtype == "fp32":
                *before, final = out.hidden_states
                states.append([x.numpy() for x in (*before, last.pop(), final)])
            last.clear()
    del model
    gc.collect()
    return np.concatenate(logits), states


@contextlib.contextmanager
def _quiet(transformers) -> Iterator[Any]:
    """Without transformers' progress bars and warnings, which would stand in the middle of the table."""
    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def format_tables(verdict: Verdict) -> str:
    """The gaps as text; layers are listed up to the first that diverges."""
    lines = [
        f"{verdict.model}: ours on {verdict.backend}, transformers on PyTorch (cpu); {verdict.num_prompts} prompts, "
        f"{verdict.num_positions} positions, largest logit {verdict.largest_logit:.4g}",
        "",
        f"{'logits':40} {'max gap':>10} {'mean gap':>10} {'same argmax':>12}",
    ]
    for row in verdict.logits:
        pair = f"{row.left} - {row.right}"
        lines.append(f"{pair:40} {row.max:10.2e} {row.mean:10.2e} {row.same_argmax:12.2%}")
    lines += ["", f"{'hidden states in fp32':40} {'relative gap':>12}"]
    for name, gap in verdict.layers:
        lines.append(f"{name:40} {gap:12.2e}")
        if name == verdict.first_divergence:
            lines[-1] += f"  above {RELATIVE_TOLERANCE:.0e}: diverges here"
            break
    return "\n".join(lines)


def format_verdict(verdict: Verdict) -> str:
    """The outcome in a few words, without a line break."""
    gap, where = verdict.logits[0].max, verdict.first_divergence
    if verdict.ok:
        note = f", although {where} is more than {RELATIVE_TOLERANCE:.0e} off" if where else ""
        return f"fp32 logits agree within {verdict.tolerance:.1e} (max gap {gap:.1e}){note}"
    return f"fp32 logits are up to {gap:.1e} apart (allowed: {verdict.tolerance:.1e}); first at: {where}"
