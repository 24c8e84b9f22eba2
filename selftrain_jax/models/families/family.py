"""What a family is: the names and the fixed choices of models that Hugging Face stores alike."""

import dataclasses
import re
from typing import Any, Callable, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.models.config import DecoderConfig, Layer, LinearScaling, Llama3Scaling, Rotary, YarnScaling
from selftrain_jax.models.families.tensor import Tensor, linear, norm, plain, projections

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position",
    "tie_word_embeddings": "tie_embeddings",
}
"""Field of config.json -> attribute of `DecoderConfig`."""
SHAPE = SIZES | {"num_key_value_heads": "num_kv_heads", "head_dim": "head_dim", "rms_norm_eps": "norm_eps"}

_SETTABLE = {"num_kv_heads": "kv_heads", "head_dim": "head_size"}  # what a property is computed from
_SCALINGS = {"default": None, "linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}
_WINDOWED, _FULL = "sliding_attention", "full_attention"
# Fields that say nothing about the model's function, or something that other fields say as well.
_HARMLESS = re.compile(
    r"(initializer_range|use_cache|\w*dropout|\w*_pdrop|pretraining_tp|(pad|bos|eos)_token_id|summary_\w+|"
    r"no_rope_layer_interval|_\w+|rope_parameters|default_theta)"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A table without model code; what has a default is like in Llama.

    Attributes:
      name: `model_type` of config.json, which is `DecoderConfig.family`.
      model_class: transformers' name of it, which transformers itself tells only where PyTorch is.
      switches: attributes of `DecoderConfig` that are the same in all models of the family.
      fields: field of config.json -> attributes of `DecoderConfig` with its value.
      fixed: field of config.json -> the only value that is supported.
      layer: the tensors of a layer, by the name that follows the layer's number.
      layered: fields from which the kind of each layer follows.
      by_type: config.json gives rotary settings for each type of layer.
      partial: it may say that only a part of each head is rotated.
      read, write: more attributes from a transformers configuration, and the fields in which it says them.
      legacy: fields that config.json states besides, for programs from before transformers 5.
      prefix: what stands before tensor names, but for the output layer's; then the names of modules.
      aliases: other name -> full name of a tensor.
      ignored: names of stored buffers that hold no parameter.
      presets: published shapes, by the last part of their hub names in lower case.
    """

    name: str
    model_class: str
    switches: Mapping[str, Any]
    fields: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=lambda: SHAPE)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"hidden_act": "silu"})
    layer: Callable[[DecoderConfig], dict[str, Tensor]] = projections
    layered: tuple[str, ...] = ()
    by_type: bool = False
    partial: bool = False
    read: Callable[[Any], dict[str, Any]] = lambda hf: {}
    write: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    legacy: Callable[[DecoderConfig], dict[str, Any]] = lambda config: legacy_rotary(config)
    prefix: str = "model."
    embedding: str = "embed_tokens"
    positions: str = ""
    layers: str = "layers"
    final_norm: str = "norm"
    head: str = "lm_head.weight"
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: re.Pattern = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
    presets: Mapping[str, DecoderConfig] = dataclasses.field(default_factory=dict)

    def read_config(self, hf: Any, defaults: Mapping[str, Any], **tokens: Any) -> DecoderConfig:
        """The `DecoderConfig` of a transformers configuration, of the class's own fields with their defaults, and of
        the special `tokens`.

        Raises:
          InputError: a field, by name, that changes what the model computes in a way that is not supported.
        """
        read = {*self.fields, *self.layered, *self.write(next(iter(self.presets.values())))}
        only = {name: value for name, value in defaults.items() if name not in read and not _HARMLESS.fullmatch(name)}
        for name, supported in (only | dict(self.fixed)).items():
            if (value := getattr(hf, name)) != supported:
                raise InputError(f"{name}={value!r} is not supported; only {supported!r} is")
        found = {"family": self.name, **self.switches}
        for name, ours in self.fields.items():
            for attribute in (ours,) if isinstance(ours, str) else ours:
                found[_SETTABLE.get(attribute, attribute)] = getattr(hf, name, None)
        if "pattern" not in found:
            found["pattern"] = self._read_pattern(hf)
        return DecoderConfig(**found | self.read(hf) | tokens)

    def write_config(self, config: DecoderConfig) -> dict[str, Any]:
        """The fields of transformers' class, but for special tokens."""
        fields = {name: getattr(config, o if isinstance(o, str) else o[0]) for name, o in self.fields.items()}
        return dict(self.fixed) | fields | self._write_pattern(config) | self.write(config)

    def _read_pattern(self, hf: Any) -> tuple[Layer, ...]:
        window = hf.sliding_window if "sliding_window" in self.layered else None
        types = hf.layer_types if "layer_types" in self.layered else [_FULL if window is None else _WINDOWED]
        rotated = hf.no_rope_layers if "no_rope_layers" in self.layered else [1] * len(types)
        kinds = [*zip(types, rotated, strict=True)]
        layers = {kind: self._read_layer(hf, *kind, window) for kind in dict.fromkeys(kinds)}
        return shortest([layers[kind] for kind in kinds])

    def _read_layer(self, hf: Any, kind: str, has_rotary: int, window: int | None) -> Layer:
        if kind not in (_FULL, _WINDOWED):
            raise InputError(f"layer_types has {kind!r}, which is not supported; {_FULL!r} and {_WINDOWED!r} are")
        if kind == _WINDOWED and not window:
            raise InputError(f"layer_types has {kind!r}, but sliding_window={window!r} gives no window")
        ropes = hf.rope_parameters
        rotary = read_rotary(ropes[kind] if self.by_type else ropes, self.partial) if has_rotary else None
        return Layer(rotary, window if kind == _WINDOWED else None)

    def _write_pattern(self, config: DecoderConfig) -> dict[str, Any]:
        layers = [config.layer(i) for i in range(config.num_layers)]
        types = [_FULL if layer.window is None else _WINDOWED for layer in layers]
        windows = [layer.window for layer in layers if layer.window is not None]
        ropes = {k: write_rotary(x.rotary, self.partial) for k, x in zip(types, layers) if x.rotary is not None}
        found = {
            "layer_types": types,
            "sliding_window": windows[0] if windows else None,
            "use_sliding_window": bool(windows),
            "no_rope_layers": [int(layer.rotary is not None) for layer in layers],
        }
        found = {name: value for name, value in found.items() if name in self.layered}
        return found | ({"rope_parameters": ropes if self.by_type else [*ropes.values()][0]} if ropes else {})

    @property
    def embedding_name(self) -> str:
        return f"{self.prefix}{self.embedding}.weight"

    def tensors(self, config: DecoderConfig, head: bool) -> dict[str, tuple[Tensor, int | None]]:
        """Full name -> (`Tensor`, layer or None), in file order; with `head`, the output layer too."""
        v, d, p = config.vocab_size, config.hidden_size, config.max_position
        first = {self.embedding_name: plain("embed", "embedding", shape=(v, d))}
        if config.learned_positions:
            first[f"{self.prefix}{self.positions}.weight"] = plain("positions", "embedding", shape=(p, d))
        names: dict[str, tuple[Tensor, int | None]] = {name: (tensor, None) for name, tensor in first.items()}
        layer = self.layer(config)
        for i in range(config.num_layers):
            names |= {f"{self.prefix}{self.layers}.{i}.{name}": (tensor, i) for name, tensor in layer.items()}
        last = norm(config, self.prefix + self.final_norm, "final_norm")
        if head:
            last[self.head] = linear("head", "kernel", rows=v, columns=d)
        return names | {name: (tensor, None) for name, tensor in last.items()}


def shortest(layers: list[Layer]) -> tuple[Layer, ...]:
    """The shortest pattern that gives `layers` when it is repeated."""
    periods = range(1, len(layers) + 1)
    period = next(p for p in periods if all(layer == layers[i % p] for i, layer in enumerate(layers)))
    return tuple(layers[:period])


def read_rotary(rope: Mapping[str, Any], partial: bool = False) -> Rotary:
    """What `rope_parameters` of config.json say."""
    kind = rope["rope_type"]
    if kind not in _SCALINGS:
        raise InputError(f"rope_type={kind!r} is not supported; one of {', '.join(_SCALINGS)} is")
    values = {name: value for name, value in rope.items() if name not in ("rope_type", "type") and value is not None}
    base, fraction = float(values.pop("rope_theta")), float(values.pop("partial_rotary_factor", 1.0))
    if fraction != 1 and not partial:
        raise InputError(f"rope_parameters: partial_rotary_factor={fraction} is not supported; only 1 is")
    scaling = _SCALINGS[kind]
    known = [field.name for field in dataclasses.fields(scaling)] if scaling else []
    for name, value in values.items():
        if name not in known:
            raise InputError(f"rope_parameters: {name}={value!r} is not supported with rope_type={kind!r}")
    try:
        return Rotary(fraction, base, scaling and scaling(**values))
    except TypeError as e:  # names the fields that are missing
        raise InputError(f"rope_parameters with rope_type={kind!r}: {e}") from None


def write_rotary(rotary: Rotary, partial: bool = False) -> dict[str, Any]:
    kind = next(name for name, cls in _SCALINGS.items() if cls is (rotary.scaling and type(rotary.scaling)))
    found = {"rope_type": kind, "rope_theta": rotary.base}
    if partial:
        found["partial_rotary_factor"] = rotary.fraction
    found |= dataclasses.asdict(rotary.scaling) if rotary.scaling else {}
    return {name: value for name, value in found.items() if value is not None}


def legacy_rotary(config: DecoderConfig) -> dict[str, Any]:
    """Where programs from before transformers 5 look, for the layers without a window if there are any."""
    layers = sorted(config.pattern, key=lambda layer: layer.window is not None)
    rope = write_rotary(next(layer.rotary for layer in layers if layer.rotary is not None))
    base = rope.pop("rope_theta")
    return {"rope_theta": base, "rope_scaling": None if rope["rope_type"] == "default" else rope}
