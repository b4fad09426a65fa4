"""A model's config.json: the fields that decide something, with transformers' defaults for those that are not given.

transformers' own classes import half of torch with them, which is two seconds of an engine's start.
"""

import json
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from descant_engine.checkpoint.unsupported import UnsupportedModelError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`model_type` -> class name; `models.registry` has a line for each."""
ENCODER_TYPES = {"bert": "BertModel"}
"""The same of encoders; `models.registry` has a line for each, and one for its cross-encoder."""
DEFAULT_THETA = 10_000.0
REQUIRED_BY_ROPE = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """What every architecture has. The names are those of the file."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    architectures: tuple[str, ...] | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    tie_word_embeddings: bool = False
    quantization_config: dict[str, Any] | None = None
    matryoshka_dimensions: tuple[int, ...] | None = None
    is_matryoshka: bool = False


@dataclass(frozen=True, kw_only=True)
class LlamaFile(ConfigFile):
    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: int | tuple[int, ...] | None = 2
    sliding_window: int | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    """The older name."""
    rope_theta: float = DEFAULT_THETA
    partial_rotary_factor: float | None = None

    @property
    def window(self) -> int | None:
        """How many tokens back attention sees, where that is limited."""
        return self.sliding_window

    @property
    def rope(self) -> dict[str, Any]:
        """With `rope_type` and `rope_theta` in any case.

        Raises:
            UnsupportedModelError: one for each kind of layer, or one that lacks what its kind needs.
        """
        given = dict(self.rope_scaling or self.rope_parameters or {})
        if any(isinstance(value, dict) for value in given.values()):
            raise UnsupportedModelError("a rotary embedding for each kind of layer is not supported")
        given.setdefault("rope_type", given.get("type", "default"))
        given.setdefault("rope_theta", self.rope_theta)
        if self.partial_rotary_factor is not None:
            given.setdefault("partial_rotary_factor", self.partial_rotary_factor)
        if lacking := [name for name in REQUIRED_BY_ROPE.get(given["rope_type"], ()) if given.get(name) is None]:
            raise UnsupportedModelError(f"rope type {given['rope_type']!r} comes without {', '.join(lacking)}")
        return given


@dataclass(frozen=True, kw_only=True)
class MistralFile(LlamaFile):
    intermediate_size: int = 14_336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 4096


@dataclass(frozen=True, kw_only=True)
class Qwen2File(LlamaFile):
    vocab_size: int = 151_936
    intermediate_size: int = 22_016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32_768
    eos_token_id: int | tuple[int, ...] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096

    @property
    def window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None


@dataclass(frozen=True, kw_only=True)
class Qwen3File(Qwen2File):
    head_dim: int | None = 128


@dataclass(frozen=True, kw_only=True)
class BertFile(ConfigFile):
    vocab_size: int = 30_522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    is_decoder: bool = False
    position_embedding_type: str = "absolute"
    id2label: dict[str, str] | None = None
    sentence_transformers: dict[str, Any] | None = None
    sbert_ce_default_activation_function: str | None = None
    num_labels: int = 2
    """Counts where `id2label` is not given."""

    @property
    def num_outputs(self) -> int:
        return self.num_labels if self.id2label is None else len(self.id2label)


@dataclass(frozen=True, kw_only=True)
class GenerationFile:
    """generation_config.json"""

    eos_token_id: int | tuple[int, ...] | None = None


FILE_TYPES: dict[str, type[LlamaFile | BertFile]] = {
    "llama": LlamaFile,
    "mistral": MistralFile,
    "qwen2": Qwen2File,
    "qwen3": Qwen3File,
    "bert": BertFile,
}
"""By `model_type`."""


FileT = TypeVar("FileT")


def parse_config(fields: object) -> LlamaFile | BertFile:
    """Of what config.json holds.

    Raises:
        UnsupportedModelError: an architecture that we don't have.
        ValueError: a field of the wrong type; says which.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ValueError("it names no model_type")
    model_type = fields["model_type"]
    if model_type not in FILE_TYPES:
        named = ", ".join(fields.get("architectures") or ["a model"])
        supported = ", ".join([*ARCHITECTURES.values(), *ENCODER_TYPES.values()])
        raise UnsupportedModelError(f"{named} of type {model_type!r} is not supported; supported are {supported}")
    return _typed(FILE_TYPES[model_type], fields)


def read_config_file(folder: Path) -> LlamaFile | BertFile:
    """Raises what `parse_config` does; OSError: there is no such file; ValueError: it is no JSON."""
    return parse_config(json.loads((folder / "config.json").read_text()))


def read_generation_file(folder: Path) -> GenerationFile:
    """Without one, nothing is given. Raises ValueError."""
    file = folder / "generation_config.json"
    return _typed(GenerationFile, json.loads(file.read_text()) if file.is_file() else {})


def _typed(kind: type[FileT], fields: dict[str, Any]) -> FileT:
    """`fields` has others too."""
    hints = get_type_hints(kind)
    return kind(**{name: _checked(name, fields[name], hint) for name, hint in hints.items() if name in fields})


def _checked(name: str, value: object, hint: Any) -> object:
    """`value`, lists as tuples."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, list) and (element := next((get_args(each)[0] for each in options if _is_tuple(each)), None)):
        return tuple(_checked(name, each, element) for each in value)
    allowed = {get_origin(option) or option for option in options}
    if type(value) in allowed or (type(value) is int and float in allowed):
        return value
    raise ValueError(f"{name} is {value!r}, which is no {hint.__name__ if isinstance(hint, type) else hint}")


def _is_tuple(hint: object) -> bool:
    return get_origin(hint) is tuple
