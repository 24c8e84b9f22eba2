"""How a task of lm-evaluation-harness wants text to be generated."""

import dataclasses
from typing import Any

from selftrain_jax.core.errors import InputError
from selftrain_jax.sampling.settings import SamplingConfig

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEUTRAL = dict(num_beams=1, repetition_penalty=1.0, num_return_sequences=1, min_new_tokens=0, use_cache=True)


@dataclasses.dataclass(frozen=True)
class Generation:
    """How one `generate_until` request is decoded.

    Attributes:
      until: the text ends before the first of these strings.
      max_new_tokens: and after so many tokens at the latest.
      sampling: None is greedy decoding.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: SamplingConfig | None


def read_generation(settings: dict[str, Any], default_length: int = 256) -> Generation:
    """A task's `generation_kwargs`, read as the harness's `hf` model reads them.

    `do_sample` decides; without it a temperature above 0 means drawing. Drawing keeps the 50 most likely tokens unless
    `top_k` says otherwise, which is what transformers does.

    Raises:
      InputError: a setting (named) that is not supported, or drawing at temperature 0.
    """
    settings = dict(settings)
    until = settings.pop("until", None) or []
    lengths = [value for value in (settings.pop(name, None) for name in _LENGTH_NAMES) if value is not None]
    temperature, do_sample = float(settings.pop("temperature", 0.0) or 0.0), settings.pop("do_sample", None)
    top_k, top_p = settings.pop("top_k", None), settings.pop("top_p", None)
    for name, value in settings.items():
        if _NEUTRAL.get(name, value if value is None else ...) != value:
            raise InputError(
                f"generation setting {name}={value!r} is not supported; supported are until, do_sample, temperature, "
                f"top_k, top_p and {_LENGTH_NAMES[0]}"
            )
    sampling = None
    if do_sample or (do_sample is None and temperature > 0):
        if temperature == 0:
            raise InputError("generation setting do_sample=True needs a temperature above 0; without it, leave it out")
        sampling = SamplingConfig(
            temperature=temperature,
            top_k=50 if top_k is None else int(top_k),
            top_p=1.0 if top_p is None else float(top_p),
            min_new_tokens=0,
        )
    until = tuple([until] if isinstance(until, str) else until)
    return Generation(until, int(lengths[0]) if lengths else default_length, sampling)
