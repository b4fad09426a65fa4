"""From a PEFT folder to a manifest: every tensor named, its shape checked, everything we cannot serve refused."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from descant_engine.adapters.manifest import AdapterManifest, FileStamp, ModuleLora, TargetModule
from descant_engine.adapters.peft_config import AdapterRefused, PeftConfig, parse_peft_config
from descant_engine.adapters.safetensors_header import CorruptFile, RawHeader, TensorInfo, parse_header, read_raw_header
from descant_engine.config import ModelShape

__all__ = ["AdapterRefused", "CorruptFile", "check_unchanged", "content_digest", "folder_stamp", "read_adapter"]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLE_NAME = "adapter_model.bin"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_CACHED_HEADER_BYTES = 1 << 20
_FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")
_ATTENTION_MODULES = (TargetModule.Q_PROJ, TargetModule.K_PROJ, TargetModule.V_PROJ, TargetModule.O_PROJ)
_KEY_PREFIX = "base_model.model."
_KEY = re.compile(rf"{re.escape(_KEY_PREFIX)}(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")


class _Site(NamedTuple):
    """A linear layer of the base model."""

    layer: int
    module: TargetModule
    name: str
    """As in transformers: model.layers.0.self_attn.q_proj."""


def read_adapter(folder: Path, shape: ModelShape, max_lora_rank: int) -> AdapterManifest:
    """The manifest of the adapter that PEFT saved into `folder`: configuration and header are read, no weights.

    Raises:
        AdapterRefused: the adapter does something that we cannot do exactly, or does not fit the base model.
        CorruptFile: a file is damaged.
        OSError: a file cannot be read.
    """
    config_path, weights_path = _find_files(folder)
    text = config_path.read_bytes()
    stamp = _stamp(weights_path)
    modules = _modules(text, read_raw_header(weights_path), shape)
    config_digest = sha256(text).hexdigest()
    digest = _registration_digest(weights_path, config_digest, stamp)
    manifest = AdapterManifest(digest, weights_path, modules, stamp, config_digest)
    check_unchanged(manifest)
    if manifest.max_lora_rank > max_lora_rank:
        raise AdapterRefused(
            f"r is {manifest.max_lora_rank}, but this engine was started with max_lora_rank={max_lora_rank}"
        )
    return manifest


def content_digest(config_digest: str, header: RawHeader, data: memoryview) -> str:
    """The identity of the adapter's content: sha256, hex, over its configuration's digest and its weights: a file of
    `header` with its length, then `data`. Without the interpreter lock for all but a moment."""
    digest = sha256(bytes.fromhex(config_digest))
    for part in (header.length_bytes, header.text, data):
        digest.update(part)
    return digest.hexdigest()


def check_unchanged(manifest: AdapterManifest) -> None:
    """To be called before and after the weights are read: between, they are those that the manifest was made from.

    Raises:
        CorruptFile: the file is another one by now.
    """
    if manifest.file_stamp is not None and _stamp(manifest.path) != manifest.file_stamp:
        raise CorruptFile(f"{manifest.path.name} was changed after it was registered; register the adapter again")


def folder_stamp(folder: Path) -> str:
    """Another one as soon as one of the adapter's files is written anew. Reads nothing."""
    return str([_stamp(path) if path.exists() else None for path in (folder / CONFIG_NAME, folder / WEIGHTS_NAME)])


def _stamp(path: Path) -> FileStamp:
    status = path.stat()
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino)


def _registration_digest(weights_path: Path, config_digest: str, stamp: FileStamp) -> str:
    return sha256(f"{weights_path.resolve()}\0{config_digest}\0{stamp}".encode()).hexdigest()


def _modules(config_text: bytes, header: RawHeader, shape: ModelShape) -> tuple[ModuleLora, ...]:
    """Adapters that came out of one recipe differ in their weights alone: all but the first are found here."""
    read = _read_modules if len(header.text) <= _MAX_CACHED_HEADER_BYTES else _read_modules.__wrapped__
    return read(config_text, header, shape)


@lru_cache(maxsize=32)
def _read_modules(config_text: bytes, header: RawHeader, shape: ModelShape) -> tuple[ModuleLora, ...]:
    return _match_modules(parse_peft_config(config_text), parse_header(header), shape)


def _find_files(folder: Path) -> tuple[Path, Path]:
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not config_path.is_file():
        raise AdapterRefused(f"{folder} has no {CONFIG_NAME}; it must be a folder that PEFT saved an adapter into")
    if config_path.stat().st_size > _MAX_CONFIG_BYTES:
        raise AdapterRefused(f"{CONFIG_NAME} has more than {_MAX_CONFIG_BYTES} bytes")
    if not weights_path.is_file():
        hint = ""
        if (folder / _PICKLE_NAME).exists():
            hint = f"; {_PICKLE_NAME} is a pickle, which may run any code: save the adapter as safetensors"
        raise AdapterRefused(f"{folder} has no {WEIGHTS_NAME}{hint}")
    return config_path, weights_path


def _match_modules(config: PeftConfig, tensors: Mapping[str, TensorInfo], shape: ModelShape) -> tuple[ModuleLora, ...]:
    """Tensors and configuration must agree on what is adapted: each target has both tensors, and nothing is left."""
    sites = [site for site in _sites(shape) if config.targets(site.name)]
    if not sites:
        raise AdapterRefused(f"target_modules matches no linear layer of {shape.architecture}")
    expected = {key for site in sites for key in _keys(site)}
    for key in tensors:
        if key not in expected:
            raise AdapterRefused(f"{WEIGHTS_NAME}: {_describe_surplus(key, shape)}")
    return tuple(_read_module(site, config, tensors, shape) for site in sites)


def _sites(shape: ModelShape) -> Iterator[_Site]:
    for layer in range(shape.num_layers):
        for module in TargetModule:
            parent = "self_attn" if module in _ATTENTION_MODULES else "mlp"
            yield _Site(layer, module, f"model.layers.{layer}.{parent}.{module.name.lower()}")


def _keys(site: _Site) -> tuple[str, str]:
    return f"{_KEY_PREFIX}{site.name}.lora_A.weight", f"{_KEY_PREFIX}{site.name}.lora_B.weight"


def _describe_surplus(key: str, shape: ModelShape) -> str:
    match = _KEY.fullmatch(key)
    if match is None:
        return f"tensor {key[:200]!r} is not a LoRA matrix of a linear layer, and no other tensors are supported"
    if match["module"] in {site.name for site in _sites(shape)}:
        return f"tensor {key!r} is there, but target_modules does not include its layer"
    return (
        f"tensor {key[:200]!r} belongs to no layer that can be adapted; those are q, k, v, o, gate, up and down of "
        f"{shape.architecture}'s {shape.num_layers} layers"
    )


def _read_module(site: _Site, config: PeftConfig, tensors: Mapping[str, TensorInfo], shape: ModelShape) -> ModuleLora:
    lora_rank = config.rank_of(site.name)
    in_features, out_features = shape.linear_shape(site.module)
    lora_a_key, lora_b_key = _keys(site)
    _check_tensor(lora_a_key, tensors, (lora_rank, in_features))
    _check_tensor(lora_b_key, tensors, (out_features, lora_rank))
    return ModuleLora(site.layer, site.module, lora_rank, config.scaling_of(site.name), lora_a_key, lora_b_key)


def _check_tensor(key: str, tensors: Mapping[str, TensorInfo], expected: tuple[int, int]) -> None:
    tensor = tensors.get(key)
    if tensor is None:
        raise AdapterRefused(f"{WEIGHTS_NAME}: tensor {key!r} is missing, although target_modules includes its layer")
    if tensor.dtype not in _FLOAT_DTYPES:
        raise AdapterRefused(f"{WEIGHTS_NAME}: {key!r} has dtype {tensor.dtype}; supported are {_FLOAT_DTYPES}")
    if tensor.shape != expected:
        raise AdapterRefused(
            f"{WEIGHTS_NAME}: {key!r} has shape {list(tensor.shape)}, but the base model and the adapter's rank need "
            f"{list(expected)}"
        )
