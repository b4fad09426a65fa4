"""The header of a safetensors file, read without its tensors and checked as untrusted input.

Format (https://github.com/huggingface/safetensors): 8 bytes, little-endian length of the header; the header, a JSON
object {name: {dtype, shape, data_offsets}}; the tensors' bytes, without gap or overlap.
"""

import json
import os
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import NamedTuple

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_LENGTH_BYTES = 8
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


class CorruptFile(ValueError):
    """The file is not what its format promises; the message names it."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    dtype: str
    """By the format's names: F32, BF16, ..."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    stop: int


class RawHeader(NamedTuple):
    """A header as it stands in its file, and what it must agree with."""

    file_name: str
    text: bytes
    num_data_bytes: int
    """How many bytes follow it."""

    @property
    def length_bytes(self) -> bytes:
        """What precedes it in the file."""
        return len(self.text).to_bytes(_LENGTH_BYTES, "little")


def read_raw_header(path: Path) -> RawHeader:
    """Raises CorruptFile for a file that is too short for its header, OSError if it cannot be read."""
    with path.open("rb") as file:
        return take_raw_header(file, path.name)


def take_raw_header(file: BufferedReader, name: str) -> RawHeader:
    """Reads a file that was just opened up to its tensors; errors as `read_raw_header`."""
    file_size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    num_data_bytes = file_size - _LENGTH_BYTES - length
    if file_size < _LENGTH_BYTES or num_data_bytes < 0 or length > MAX_HEADER_BYTES:
        raise CorruptFile(
            f"{name}: the header claims {length} bytes, but the file has {file_size} and the format allows "
            f"{MAX_HEADER_BYTES}; the file is truncated or not safetensors"
        )
    return RawHeader(name, file.read(length), num_data_bytes)


def parse_header(header: RawHeader) -> dict[str, TensorInfo]:
    """Name -> tensor. Raises CorruptFile for a header that is not valid or does not fit the file's size."""
    try:
        tensors = _parse(header.text)
        _check_coverage(tensors, header.num_data_bytes)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{header.file_name}: {error}; the file is corrupt or not safetensors") from None
    return tensors


def _parse(header: bytes) -> dict[str, TensorInfo]:
    entries = json.loads(header.decode(), object_pairs_hook=_unique)
    if not isinstance(entries, dict):
        raise ValueError("the header is not a JSON object")
    return {name: _tensor_info(name, entry) for name, entry in entries.items() if name != "__metadata__"}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name occurs twice in the header")
    return entries


def _tensor_info(name: str, entry: object) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]} if (
            dtype in _DTYPE_BYTES and all(_is_size(number) for number in (*shape, start, stop))
        ):
            pass
        case _:
            raise ValueError(f"the header's entry of {name!r} is not {{dtype, shape, data_offsets}}")
    if stop - start != prod(shape) * _DTYPE_BYTES[dtype]:
        raise ValueError(f"{name!r} of shape {shape} and dtype {dtype} cannot lie in bytes {start} to {stop}")
    return TensorInfo(dtype, tuple(shape), start, stop)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_coverage(tensors: dict[str, TensorInfo], num_data_bytes: int) -> None:
    expected_start = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != expected_start:
            raise ValueError(f"{name!r} begins at byte {tensor.start}, but the tensor before ends at {expected_start}")
        expected_start = tensor.stop
    if expected_start != num_data_bytes:
        raise ValueError(f"the tensors take {expected_start} bytes, but {num_data_bytes} follow the header")
