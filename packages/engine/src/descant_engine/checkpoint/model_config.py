"""From what the user asked for to numbers: reads the model's own config and settles every "auto"."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from descant_engine.checkpoint.config_file import (
    ARCHITECTURES,
    BertFile,
    LlamaFile,
    read_config_file,
    read_generation_file,
)
from descant_engine.checkpoint.encoder_config import encoder_shape
from descant_engine.checkpoint.gguf_cache import config_folder
from descant_engine.checkpoint.model_tasks import is_bare_decoder, pooling_of, tasks_of
from descant_engine.checkpoint.unsupported import UnsupportedModelError as UnsupportedModelError
from descant_engine.config import Device, Dtype, EngineConfig, ModelShape, ResolvedConfig, RopeScaling
from descant_engine.pooling import PoolingConfig
from descant_engine.speculation.config import SpeculativeConfig

ROPE_KINDS = ("default", "linear", "llama3", "dynamic", "yarn")


class ModelPlace(NamedTuple):
    folder: Path
    gguf_file: str | None


class ModelConfig(NamedTuple):
    source: LlamaFile | BertFile
    shape: ModelShape
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceDefaults:
    max_num_seqs: int
    max_num_batched_tokens: int


DEFAULTS: dict[Device, DeviceDefaults] = {"cuda": DeviceDefaults(256, 8192), "cpu": DeviceDefaults(64, 512)}


def resolve(user: EngineConfig) -> ResolvedConfig:
    """Reads the model's config and fills in what the user left open.

    Raises:
        UnsupportedModelError: see `read_model_config`.
        ValueError: a wish that cannot be met; the message has both numbers.
    """
    source, shape, eos_token_ids = read_model_config(user.model)
    pooling = pooling_of(user, shape, source, locate_model(user.model, with_weights=False).folder)
    device = _device(user)
    defaults = DEFAULTS[device]
    max_num_seqs = defaults.max_num_seqs if user.max_num_seqs is None else user.max_num_seqs
    max_model_len = _max_model_len(user, shape, pooling)
    budget = user.max_num_batched_tokens
    default_budget = max(defaults.max_num_batched_tokens, max_num_seqs, max_model_len if shape.encoder else 0)
    return ResolvedConfig(
        user=user,
        shape=shape,
        dtype=_dtype(user, device),
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=default_budget if budget is None else budget,
        eos_token_ids=eos_token_ids,
        tasks=tasks_of(user, shape, source, pooling),
        pooling=pooling,
        draft_shape=draft_shape(user.speculative_config, user.model, shape, max_model_len),
    )


def draft_shape(
    speculative: SpeculativeConfig | None, model: str, shape: ModelShape, max_model_len: int
) -> ModelShape | None:
    """The draft model's, if there is to be one.

    Raises:
        UnsupportedModelError: it cannot be read, or cannot draft for the model; the message has both numbers.
    """
    if speculative is None:
        return None
    if shape.encoder is not None:
        raise UnsupportedModelError(f"{model} is an encoder: it generates nothing that could be drafted")
    if speculative.model is None:
        return None
    draft = read_model_config(speculative.model).shape
    if draft.encoder is not None:
        raise UnsupportedModelError(f"draft model {speculative.model} is an encoder; it must be one that generates")
    if draft.vocab_size != shape.vocab_size:
        raise UnsupportedModelError(
            f"draft model {speculative.model} has a vocabulary of {draft.vocab_size} tokens, but {model} one of "
            f"{shape.vocab_size}; they must be the same"
        )
    if draft.max_position < max_model_len:
        raise UnsupportedModelError(
            f"draft model {speculative.model} has a context of {draft.max_position} tokens, but max_model_len="
            f"{max_model_len}; lower max_model_len, or take another model"
        )
    return draft


def read_model_config(model: str) -> ModelConfig:
    """The config of a folder, a .gguf file or a hub id.

    Raises:
        UnsupportedModelError: no such model, or one that cannot be computed exactly; says what is supported.
    """
    place = locate_model(model, with_weights=False)
    try:
        folder = config_folder(place.folder / place.gguf_file) if place.gguf_file is not None else place.folder
        source = read_config_file(folder)
        return ModelConfig(source, model_shape(source), _eos_token_ids(source, place))
    except UnsupportedModelError:
        raise
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedModelError(f"{model}: its config cannot be read ({_first_line(error)})") from error


def locate_model(model: str, *, with_weights: bool) -> ModelPlace:
    """Where the model's files are; a hub id is downloaded (HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are heeded)."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return ModelPlace(path.parent, path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnsupportedModelError(f"{path} has no config.json: not a model folder in Hugging Face's format")
        return ModelPlace(path, None)
    return ModelPlace(_download(model, with_weights), None)


def _download(model: str, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors"] if with_weights else ["*.json"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except HFValidationError:
        tried = "no such folder or .gguf file, and not a hub id (organization/name)"
    except (OSError, ValueError, RuntimeError) as error:
        tried = f"no such folder or .gguf file, and the hub gave: {_first_line(error)}"
    raise UnsupportedModelError(f"model {model!r} not found: {tried}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def model_shape(source: LlamaFile | BertFile) -> ModelShape:
    """The numbers of a model's config.

    Raises:
        UnsupportedModelError: a rotary embedding, quantization or activation we don't have.
    """
    if isinstance(source, BertFile):
        return encoder_shape(source)
    _refuse_variants(source)
    bias = source.attention_bias
    rope = _rope(source)
    return ModelShape(
        architecture=ARCHITECTURES[source.model_type],
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        num_layers=source.num_hidden_layers,
        num_q_heads=source.num_attention_heads,
        num_kv_heads=source.num_key_value_heads or source.num_attention_heads,
        head_dim=source.head_dim or source.hidden_size // source.num_attention_heads,
        rms_norm_eps=source.rms_norm_eps,
        max_position=_max_position(source, rope),
        rope=rope,
        tie_word_embeddings=source.tie_word_embeddings or is_bare_decoder(source),
        attention_bias=bias or source.model_type == "qwen2",
        output_bias=bias,
        mlp_bias=source.mlp_bias,
    )


def _refuse_variants(source: LlamaFile) -> None:
    if source.quantization_config is not None:
        method = source.quantization_config.get("quant_method")
        raise UnsupportedModelError(f"quantization {method!r} is not supported; supported are none and GGUF files")
    if source.hidden_act != "silu":
        raise UnsupportedModelError(f"activation {source.hidden_act!r} is not supported; supported is silu")
    if source.num_attention_heads % (source.num_key_value_heads or source.num_attention_heads):
        raise UnsupportedModelError(
            f"{source.num_attention_heads} query heads cannot share {source.num_key_value_heads} KV heads evenly"
        )
    if source.head_dim is None and source.hidden_size % source.num_attention_heads:
        raise UnsupportedModelError(
            f"hidden_size={source.hidden_size} is not a multiple of num_attention_heads={source.num_attention_heads}"
        )


def _rope(source: LlamaFile) -> RopeScaling:
    given = source.rope
    kind = given["rope_type"]
    if kind not in ROPE_KINDS:
        raise UnsupportedModelError(f"rope type {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
    if given.get("partial_rotary_factor", 1.0) != 1.0 or not given.get("truncate", True):
        raise UnsupportedModelError("partial rotary embeddings and YaRN without truncation are not supported")
    original = given.get("original_max_position_embeddings") or source.max_position_embeddings
    factor = given.get("factor") or (source.max_position_embeddings / original if kind == "yarn" else 1.0)
    return RopeScaling(
        kind=kind,
        theta=given["rope_theta"],
        factor=factor,
        low_freq_factor=given.get("low_freq_factor") or 1.0,
        high_freq_factor=given.get("high_freq_factor") or 1.0,
        original_max_position=original,
        beta_fast=given.get("beta_fast") or 32.0,
        beta_slow=given.get("beta_slow") or 1.0,
        attention_factor=_yarn_attention_factor(given, factor) if kind == "yarn" else 1.0,
    )


def _yarn_attention_factor(given: dict[str, Any], factor: float) -> float:
    """YaRN, arXiv 2309.00071, equation 22, with DeepSeek's two mscale numbers where given."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        return mscale(given["mscale"]) / mscale(given["mscale_all_dim"])
    return mscale(1.0)


def _max_position(source: LlamaFile, rope: RopeScaling) -> int:
    trained = source.max_position_embeddings
    if rope.kind == "linear":
        trained = int(trained * rope.factor)
    if rope.kind == "yarn":
        trained = max(trained, int(rope.original_max_position * rope.factor))
    return min(trained, source.window) if source.window else trained


def _eos_token_ids(source: LlamaFile | BertFile, place: ModelPlace) -> tuple[int, ...]:
    """Those of the config and of generation_config.json together."""
    given = [source.eos_token_id]
    if place.gguf_file is None:
        given.append(read_generation_file(place.folder).eos_token_id)
    ids: set[int | None] = set()
    for eos in given:
        ids |= set(eos) if isinstance(eos, tuple) else {eos}
    return tuple(sorted(eos for eos in ids if eos is not None))


def _max_model_len(user: EngineConfig, shape: ModelShape, pooling: PoolingConfig | None) -> int:
    if user.max_model_len is None:
        trained = None if pooling is None else pooling.max_tokens
        return min(trained or shape.max_position, shape.max_position)
    if not 1 <= user.max_model_len <= shape.max_position:
        raise ValueError(
            f"max_model_len={user.max_model_len} is outside what the model's config allows: 1 to {shape.max_position}"
        )
    return user.max_model_len


def _device(user: EngineConfig) -> Device:
    import torch

    if user.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA device; use device=cpu, or check the driver")
    device: Device = user.device if user.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if user.deterministic and device != "cuda":
        raise ValueError(f"deterministic=True needs device=cuda; on device={device} sums follow the size of the batch")
    return device


def _dtype(user: EngineConfig, device: Device) -> Dtype:
    """bfloat16 wherever the hardware multiplies it fast."""
    import torch

    if user.dtype != "auto":
        return user.dtype
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    fast: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"
