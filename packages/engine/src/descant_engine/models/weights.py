"""From files to parameters: safetensors folders, hub ids, GGUF files, or random numbers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from descant_engine.checkpoint.gguf_cache import weights_folder
from descant_engine.checkpoint.model_config import UnsupportedModelError, locate_model
from descant_engine.layers.linear import Linear

RANDOM_STD = 0.02
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Old checkpoints carry the rotary table; ours is computed."""


class CheckpointTensor(NamedTuple):
    file: Path
    name: str
    tensor: Tensor


def checkpoint_tensors(model: str, dtype: str) -> Iterator[CheckpointTensor]:
    """Every tensor of the checkpoint, one at a time, memory-mapped.

    Raises:
        UnsupportedModelError: no such model, or a file that is damaged; names the file.
    """
    place = locate_model(model, with_weights=True)
    folder = place.folder if place.gguf_file is None else weights_folder(place.folder / place.gguf_file, dtype)
    for file in _safetensors_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield CheckpointTensor(file, name, opened.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise UnsupportedModelError(
                f"{file} is damaged or incomplete ({error}); download it again, or check it against the model's source"
            ) from error


def fill(
    model: nn.Module, tensors: Iterator[CheckpointTensor], place_of: Callable[[str], str | None] = lambda name: name
) -> None:
    """Copies each tensor to its place. `place_of` is the model's name for a checkpoint's tensor, None for one that it
    has no use for.

    Raises:
        UnsupportedModelError: a tensor is missing, unknown or of the wrong shape; names it and the file.
    """
    places = _places(model)
    tied_head = "lm_head.weight" not in places
    files: set[str] = set()
    for file, name, tensor in tensors:
        files.add(file.name)
        place_name = place_of(name)
        if place_name is None or name.endswith(IGNORED_SUFFIXES) or (tied_head and name == "lm_head.weight"):
            continue
        if place_name not in places:
            raise UnsupportedModelError(f"{file}: tensor {name} is not part of this architecture, or comes twice")
        place = places.pop(place_name)
        if place.shape != tensor.shape:
            raise UnsupportedModelError(
                f"{file}: tensor {name} has shape {list(tensor.shape)}; the config asks for {list(place.shape)}"
            )
        place.copy_(tensor)
    if places:
        raise UnsupportedModelError(
            f"{len(places)} tensors are missing, the first is {min(places)}; files read: {', '.join(sorted(files))}"
        )


def fill_with_random(model: nn.Module, seed: int) -> None:
    """Small random weights made on the device itself, norms 1 and biases 0: the right speed, the wrong words."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, place in sorted(_places(model).items()):
        if name.lower().endswith("norm.weight"):
            place.fill_(1.0)
        elif name.endswith("bias"):
            place.zero_()
        else:
            generator = generators.setdefault(place.device, torch.Generator(place.device).manual_seed(seed))
            place.normal_(std=RANDOM_STD, generator=generator)


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Name in the checkpoint -> where it belongs."""
    places: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            parent = path[: path.rfind(".") + 1]
            places |= {f"{parent}{name}": rows for name, rows in module.checkpoint_tensors()}
        else:
            places |= {f"{path}.{name}": own.data for name, own in module.named_parameters(recurse=False)}
    return places


def _safetensors_files(folder: Path) -> list[Path]:
    """The files that the index names, or the single file, or whatever there is."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UnsupportedModelError(f"{index} names {missing[0]}, which is not in the folder")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedModelError(f"{folder} has no *.safetensors file; only safetensors and GGUF can be read")
    return files
