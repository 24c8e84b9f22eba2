"""SmolLM3: a Llama whose every fourth layer knows no positions."""

import functools

from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.families.family import SHAPE, Family
from selftrain_jax.models.families.llama import BEFORE, NO_BIASES, SWITCHES
from selftrain_jax.models.families.tensor import projections

_SWITCHES = SWITCHES | {"family": "smollm3"}

SMOLLM3 = Family(
    config_class="SmolLM3Config",
    model_class="SmolLM3ForCausalLM",
    switches=_SWITCHES,
    fields=SHAPE | {"attention_bias": ("qkv_bias", "out_bias"), "mlp_bias": "mlp_bias"},
    fixed={"hidden_act": "silu"},
    layer=functools.partial(projections, norms=BEFORE),
    layered=("layer_types", "sliding_window", "use_sliding_window", "no_rope_layers"),
    presets={
        "smollm3-3b-base": DecoderConfig(
            **_SWITCHES,
            **NO_BIASES,
            vocab_size=128_256,
            hidden_size=2048,
            num_layers=36,
            num_heads=16,
            kv_heads=4,
            intermediate_size=11_008,
            max_position=65_536,
            norm_eps=1e-6,
            pattern=(*[Layer(Rotary(base=5e6))] * 3, Layer(None)),
            tie_embeddings=True,
            bos_token_id=128_000,
            eos_token_id=128_001,
        )
    },
)
