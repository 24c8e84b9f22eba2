"""Small checkpoints of every family, as transformers itself writes them; PyTorch is needed."""

import pytest

from selftrain_jax.models.families import FAMILIES

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 20}
NEAR, FAR = "sliding_attention", "full_attention"

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GPT2 = {"vocab_size": 96, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
CUT = {"num_hidden_layers": 4, "layer_types": [NEAR, NEAR, FAR, NEAR]}  # a pattern of three, and the first of a second

# Windows are shorter than the rows.
CASES = {
    "llama": ("llama", SHAPE | {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", SHAPE | {"sliding_window": 20, "head_dim": 16}),
    "qwen2": ("qwen2", SHAPE | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 16}),
    "olmo2": ("olmo2", SHAPE),
    "olmo3": ("olmo3", SHAPE | CUT | {"sliding_window": 20, "rope_parameters": {FAR: YARN, NEAR: PLAIN}}),
    "smollm3": ("smollm3", SHAPE | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}),
    "gpt2": ("gpt2", GPT2),
    "gemma2": ("gemma2", SHAPE | GEMMA | {"num_hidden_layers": 3}),
    "gemma3": (
        "gemma3_text",
        SHAPE
        | GEMMA
        | CUT
        | {"num_key_value_heads": 1, "rope_parameters": {FAR: LINEAR | {"rope_theta": 1e6}, NEAR: PLAIN}},
    ),
}
MORE = {
    "gpt_neox, linear": (
        "gpt_neox",
        {name: SHAPE[name] for name in SHAPE if name != "num_key_value_heads"}
        | {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}},
    ),
    "llama, plain": ("llama", SHAPE),
    "llama, 1 head": ("llama", SHAPE | {"num_key_value_heads": 1, "rope_parameters": LINEAR}),
    "llama, tied": ("llama", SHAPE | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama, biases": (
        "llama",
        SHAPE
        | {"num_key_value_heads": 4, "head_dim": 24, "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ),
    "mistral, no window": ("mistral", SHAPE | {"sliding_window": None}),
    "qwen2, window": ("qwen2", SHAPE | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3, yarn": ("qwen3", SHAPE | {"head_dim": 12, "attention_bias": True, "rope_parameters": YARN}),
    "olmo2, 4 heads": ("olmo2", SHAPE | {"num_key_value_heads": 4}),
    "olmo3, own pattern": ("olmo3", SHAPE | {"num_hidden_layers": 5, "sliding_window": 20}),
    "smollm3, own pattern": ("smollm3", SHAPE | {"num_hidden_layers": 5}),
    "gpt2, untied": ("gpt2", GPT2 | {"tie_word_embeddings": False, "n_inner": 100}),
    "gemma3, own pattern": ("gemma3_text", SHAPE | GEMMA | {"num_hidden_layers": 7}),
}


def neox_config(config, **more):
    """transformers' settings of a GPT-NeoX of that shape."""
    import transformers

    return transformers.GPTNeoXConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position,
        rotary_pct=config.rotaries[0].fraction,
        use_parallel_residual=config.parallel_residual,
        tie_word_embeddings=config.tie_embeddings,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        **more,
    )


def reference(case):
    """(family table, transformers model far from its initialization, so that norms and biases matter)."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    import transformers

    name, fields = (CASES | MORE)[case]
    kind = transformers.CONFIG_MAPPING[name]
    torch.manual_seed(0)
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind](kind(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std().nan_to_num(1.0).clamp(min=0.3) * torch.randn(parameter.shape)
    return FAMILIES[name], model
