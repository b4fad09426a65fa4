"""An adapter's file, read once: its identity, its tensors in the pool's dtype, its rank tiles in blocks.

Runs on loading threads beside the engine, so it is a few long calls that do not hold the interpreter, not many short
ones: reading, hashing and checking go over the whole file at once, the copies over many layers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from descant_engine.adapters.files import check_unchanged, content_digest
from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.adapters.safetensors_header import CorruptFile, RawHeader, take_raw_header
from descant_engine.cache.adapter_layout import AdapterLayout
from descant_engine.runner.host_blocks import HostBlocks
from descant_engine.runner.tile_copies import FilePlan, Segment, StridedCopy, plan_file
from descant_engine.runner.transfer import words_of

Words = npt.NDArray[np.generic]
"""Unsigned integers: the bits of a torch dtype, some of which numpy does not know."""

MAX_KEPT_BYTES = 64 << 20
"""A reader keeps its memory for the next file, unless the file was a rare large one."""
_TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True, slots=True)
class AdapterRead:
    content_digest: str
    block_ids: tuple[int, ...]
    """Of the host blocks that the adapter was written to."""


class AdapterReader:
    """Reads one file after the other. Each thread has one."""

    def __init__(self, blocks: HostBlocks, dtype: torch.dtype) -> None:
        self._blocks = blocks
        self._dtype = dtype
        self._memory = np.empty(0, dtype=np.uint8)

    def read(self, manifest: AdapterManifest, layout: AdapterLayout) -> AdapterRead:
        """Reads the file into host blocks.

        Raises:
            CorruptFile: the file is cut short, or another one than was registered.
            ValueError: a tensor holds NaN or infinity, or overflows the pool's dtype; names file and tensor.
            OSError: the file cannot be read.
        """
        check_unchanged(manifest)
        header, data = self._read_file(manifest)
        # Between two looks at an unchanged stamp lies one content.
        check_unchanged(manifest)
        digest = manifest.content_digest or content_digest(manifest.config_digest, header, data.data)
        plan = plan_file(header, manifest.modules, layout)
        elements = _elements(data, plan.segments, self._dtype)
        _check_finite(elements, plan, self._dtype, manifest.path.name)
        block_ids = self._blocks.take(layout.num_blocks)
        for copy in plan.copies:
            _carry_out(copy, elements, self._blocks.words(block_ids[copy.block_index]))
        return AdapterRead(digest, block_ids)

    def _read_file(self, manifest: AdapterManifest) -> tuple[RawHeader, npt.NDArray[np.uint8]]:
        with manifest.path.open("rb") as file:
            header = take_raw_header(file, manifest.path.name)
            data = self._room_for(header.num_data_bytes)
            if file.readinto(data.data) != len(data):
                raise CorruptFile(f"{manifest.path.name} ends before its header says; the file is truncated")
        return header, data

    def _room_for(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        if num_bytes > MAX_KEPT_BYTES:
            return np.empty(num_bytes, dtype=np.uint8)
        if num_bytes > len(self._memory):
            self._memory = np.empty(num_bytes, dtype=np.uint8)
        return self._memory[:num_bytes]


def _elements(data: npt.NDArray[np.uint8], segments: tuple[Segment, ...], dtype: torch.dtype) -> Words:
    """[elements of all tensors] in `dtype`; a view where nothing has to be converted."""
    parts = [_converted(data[start:stop], _TORCH_DTYPES[stored], dtype) for stored, start, stop in segments]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _converted(data: npt.NDArray[np.uint8], stored: torch.dtype, dtype: torch.dtype) -> Words:
    if data.ctypes.data % stored.itemsize:
        data = data.copy()
    return words_of(torch.from_numpy(data).view(stored).to(dtype))


def _check_finite(elements: Words, plan: FilePlan, dtype: torch.dtype, file_name: str) -> None:
    if _is_finite(elements, dtype):
        return
    name = next(t.name for t in plan.tensors if not _is_finite(elements[t.start : t.stop], dtype))
    raise ValueError(f"{file_name}: {name} holds NaN or infinite values in {dtype}; the adapter is unusable")


def _is_finite(words: Words, dtype: torch.dtype) -> bool:
    """By bits, in two passes without memory of their own: from infinity on, words of either sign are not finite."""
    if not len(words):
        return True
    infinity = _infinity(dtype)
    sign = 1 << (8 * dtype.itemsize - 1)
    signed = words.view(f"i{dtype.itemsize}")
    return int(signed.max()) < infinity and int(words.max()) < infinity | sign


@lru_cache
def _infinity(dtype: torch.dtype) -> int:
    return int(words_of(torch.tensor([torch.inf], dtype=dtype))[0])


def _carry_out(copy: StridedCopy, source: Words, block: Words) -> None:
    np.copyto(
        _view(block, copy.target, copy.shape, copy.target_strides),
        _view(source, copy.source, copy.shape, copy.source_strides),
    )


def _view(words: Words, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Words:
    """A strided view; numpy checks that it stays inside."""
    size = words.itemsize
    return np.ndarray(shape, words.dtype, words, first * size, tuple(size * stride for stride in strides))
