"""A GPT-NeoX checkpoint in CTranslate2's form, without its converter, which needs PyTorch and an old transformers."""

import json
import os
import pathlib

import numpy as np


def convert(directory: str, out: str) -> None:
    """Writes the Hugging Face directory (GPT-NeoX, safetensors in one file, fp32) as a CTranslate2 model; the token of
    id i is called "i".
    """
    from ctranslate2.specs import common_spec, transformer_spec
    from safetensors.numpy import load_file

    config = json.loads((pathlib.Path(directory) / "config.json").read_text())
    if config["model_type"] != "gpt_neox" or config["hidden_act"] != "gelu":
        raise SystemExit(f"--reference=ctranslate2 takes Pythia's shapes, not {config['model_type']}")
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    rotary = config.get("rope_parameters") or {"partial_rotary_factor": config.get("rotary_pct", 0.25)}
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        layers,
        heads,
        activation=common_spec.Activation.GELU,
        rotary_dim=int(rotary["partial_rotary_factor"] * (config["hidden_size"] // heads)),
        rotary_interleave=False,
        parallel_residual=config["use_parallel_residual"],
    )
    tensors, decoder = load_file(f"{directory}/model.safetensors"), spec.decoder
    tensors = {name.removeprefix("gpt_neox."): value.astype(np.float32) for name, value in tensors.items()}

    def fill(part, name):
        part.weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        if bias is not None:
            part.bias = bias

    def fill_norm(part, name):
        part.gamma, part.beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    decoder.scale_embeddings = False
    decoder.embeddings.weight = tensors["embed_in.weight"]
    fill_norm(decoder.layer_norm, "final_layer_norm")
    fill(decoder.projection, "embed_out")
    for i, layer in enumerate(decoder.layer):
        name = f"layers.{i}"
        parallel = config["use_parallel_residual"]
        fill_norm(layer.input_layer_norm if parallel else layer.self_attention.layer_norm, f"{name}.input_layernorm")
        after = layer.post_attention_layer_norm if parallel else layer.ffn.layer_norm
        fill_norm(after, f"{name}.post_attention_layernorm")
        # Stored by head; wanted are all queries, then keys, then values.
        for kind in ("weight", "bias"):
            joined = tensors[f"{name}.attention.query_key_value.{kind}"]
            apart = joined.reshape(heads, 3, -1, *joined.shape[1:]).swapaxes(0, 1)
            setattr(layer.self_attention.linear[0], kind, np.ascontiguousarray(apart.reshape(joined.shape)))
        fill(layer.self_attention.linear[1], f"{name}.attention.dense")
        fill(layer.ffn.linear_0, f"{name}.mlp.dense_h_to_4h")
        fill(layer.ffn.linear_1, f"{name}.mlp.dense_4h_to_h")
    spec.register_vocabulary([str(i) for i in range(config["vocab_size"])])
    for name in ("bos_token", "eos_token", "unk_token"):
        setattr(spec.config, name, "0")
    spec.validate()
    spec.optimize()
    os.makedirs(out)
    spec.save(out)
