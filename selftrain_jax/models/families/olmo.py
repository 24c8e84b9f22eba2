"""OLMo 2 and OLMo 3, whose training data are open: norms on what attention and MLP give, and on all heads together."""

import dataclasses
import functools

from selftrain_jax.models.config import DecoderConfig, Layer, Rotary, YarnScaling
from selftrain_jax.models.families.family import SHAPE, Family
from selftrain_jax.models.families.llama import SWITCHES
from selftrain_jax.models.families.tensor import projections

_AFTER = {"post_attention_layernorm": "attention_out_norm", "post_feedforward_layernorm": "mlp_out_norm"}
_SWITCHES = SWITCHES | {"mlp_bias": False, "norm_places": "after", "qk_norm": "projection"}

_START = dict(bos_token_id=100_257, eos_token_id=100_257)  # the separator of documents; there is no BOS
_shape = functools.partial(DecoderConfig, **_SWITCHES, qkv_bias=False, out_bias=False, norm_eps=1e-6, **_START)
_PLAIN = Rotary(base=5e5)
_olmo2 = functools.partial(_shape, max_position=4096, pattern=(Layer(_PLAIN),), family="olmo2")
_YARN = dataclasses.replace(_PLAIN, scaling=YarnScaling(8.0, 8192, attention_factor=1.2079441541679836))
_PATTERN = (*[Layer(_PLAIN, 4096)] * 3, Layer(_YARN))
_olmo3 = functools.partial(_shape, max_position=65_536, pattern=_PATTERN, family="olmo3")

OLMO2 = Family(
    name="olmo2",
    model_class="Olmo2ForCausalLM",
    switches=_SWITCHES,
    fields=SHAPE | {"attention_bias": ("qkv_bias", "out_bias")},
    layer=functools.partial(projections, norms=_AFTER),
    presets={
        "olmo-2-0425-1b": _olmo2(100_352, 2048, 16, 16, 8192),
        "olmo-2-1124-7b": _olmo2(100_352, 4096, 32, 32, 11_008),
        "olmo-2-1124-13b": _olmo2(100_352, 5120, 40, 40, 13_824),
    },
)
OLMO3 = dataclasses.replace(
    OLMO2,
    name="olmo3",
    model_class="Olmo3ForCausalLM",
    layered=("layer_types", "sliding_window"),
    by_type=True,
    presets={
        "olmo-3-1025-7b": _olmo3(100_278, 4096, 32, 32, 11_008),
        "olmo-3-1125-32b": _olmo3(100_278, 5120, 64, 40, 27_648, kv_heads=8),
    },
)
