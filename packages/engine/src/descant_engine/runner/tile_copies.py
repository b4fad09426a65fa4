"""From the tensors of a file to an adapter's blocks: which elements go where, in few strided copies.

Layers lie at equal distances in file and blocks for long stretches, so one copy moves a matrix of many layers. What
counts is not the bytes but how often a loading thread wants the interpreter, which the engine needs at the same time.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from math import prod
from typing import NamedTuple

from descant_engine.adapters.manifest import ModuleLora, TargetModule
from descant_engine.adapters.safetensors_header import CorruptFile, RawHeader, TensorInfo, parse_header
from descant_engine.cache.adapter_layout import AdapterLayout

_MAX_CACHED_HEADER_BYTES = 1 << 20


class Segment(NamedTuple):
    """Neighbours in the file that have one dtype."""

    dtype: str
    """By safetensors' names."""
    start: int
    """First byte, counted from the end of the header."""
    stop: int


class NamedElements(NamedTuple):
    """A tensor's place among the elements of all tensors, in the file's order."""

    name: str
    start: int
    stop: int


class StridedCopy(NamedTuple):
    """`shape` = [layers, rows, width] elements, each row contiguous in the block. Offsets and strides in elements."""

    block_index: int
    shape: tuple[int, int, int]
    source: int
    source_strides: tuple[int, int, int]
    target: int
    target_strides: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class FilePlan:
    segments: tuple[Segment, ...]
    tensors: tuple[NamedElements, ...]
    copies: tuple[StridedCopy, ...]


class _Matrices(NamedTuple):
    """What counts of a `ModuleLora`: adapters that differ in their scaling have one plan."""

    layer: int
    module: TargetModule
    lora_rank: int
    lora_a_key: str
    lora_b_key: str


class _Piece(NamedTuple):
    """What the copies of a stretch of layers have in common."""

    block_index: int
    module: TargetModule
    tile: int
    rows: int
    width: int
    row_stride: int
    """In the file; lora_b lies there transposed."""
    column_stride: int


def plan_file(header: RawHeader, modules: tuple[ModuleLora, ...], layout: AdapterLayout) -> FilePlan:
    """The plan for a file with this header; worked out once for adapters of one recipe.

    Raises:
        CorruptFile: the header is not valid, or does not have the tensors of `modules`.
    """
    plan = _plan_file if len(header.text) <= _MAX_CACHED_HEADER_BYTES else _plan_file.__wrapped__
    matrices = tuple(_Matrices(m.layer, m.module, m.lora_rank, m.lora_a_key, m.lora_b_key) for m in modules)
    return plan(header, matrices, layout)


@lru_cache(maxsize=32)
def _plan_file(header: RawHeader, modules: tuple[_Matrices, ...], layout: AdapterLayout) -> FilePlan:
    infos = parse_header(header)
    names = sorted(infos, key=lambda name: (infos[name].start, infos[name].stop))
    stops = accumulate(prod(infos[name].shape) for name in names)
    tensors = tuple(
        NamedElements(name, stop - prod(infos[name].shape), stop) for name, stop in zip(names, stops, strict=True)
    )
    _check_shapes(header.file_name, infos, modules, layout)
    starts = {tensor.name: tensor.start for tensor in tensors}
    return FilePlan(_segments([infos[name] for name in names]), tensors, tuple(_copies(starts, modules, layout)))


def _segments(infos: list[TensorInfo]) -> tuple[Segment, ...]:
    groups = [list(group) for _, group in groupby(infos, key=lambda info: info.dtype)]
    return tuple(Segment(group[0].dtype, group[0].start, group[-1].stop) for group in groups)


def _check_shapes(
    file_name: str, infos: Mapping[str, TensorInfo], modules: tuple[_Matrices, ...], layout: AdapterLayout
) -> None:
    widths = {(tile.layer, tile.module, tile.is_lora_a): tile.width for tile in layout.tiles}
    for module in modules:
        lora_rank = module.lora_rank
        expected = {
            module.lora_a_key: (lora_rank, widths[module.layer, module.module, True]),
            module.lora_b_key: (widths[module.layer, module.module, False], lora_rank),
        }
        for key, shape in expected.items():
            if key not in infos or infos[key].shape != shape:
                raise CorruptFile(f"{file_name} was changed after it was registered; register the adapter again")


def _copies(starts: Mapping[str, int], modules: tuple[_Matrices, ...], layout: AdapterLayout) -> Iterator[StridedCopy]:
    """Tiles of one kind, cut where the distance to the next layer's changes."""
    by_place = {(module.layer, module.module): module for module in modules}
    pieces: dict[_Piece, list[tuple[int, int]]] = defaultdict(list)
    for tile in sorted(layout.tiles, key=lambda tile: (tile.block_index, tile.offset)):
        module = by_place[tile.layer, tile.module]
        first = tile.tile * layout.rank_tile
        if tile.is_lora_a:
            source, strides = starts[module.lora_a_key] + first * tile.width, (tile.width, 1)
        else:
            source, strides = starts[module.lora_b_key] + first, (1, module.lora_rank)
        piece = _Piece(tile.block_index, tile.module, tile.tile, tile.rows, tile.width, *strides)
        pieces[piece].append((source, tile.offset))
    for piece, places in pieces.items():
        yield from (_copy(piece, run) for run in _even_runs(places))


def _even_runs(places: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """`places`, in stretches in which each lies as far from the one before it, in both numbers."""
    run: list[tuple[int, int]] = []
    for place in places:
        if len(run) >= 2 and _step(run[-1], place) != _step(run[-2], run[-1]):
            yield run
            run = []
        run.append(place)
    yield run


def _step(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return second[0] - first[0], second[1] - first[1]


def _copy(piece: _Piece, run: list[tuple[int, int]]) -> StridedCopy:
    (source, target), (source_step, target_step) = run[0], _step(*run[:2]) if len(run) > 1 else (0, 0)
    return StridedCopy(
        piece.block_index,
        (len(run), piece.rows, piece.width),
        source,
        (source_step, piece.row_stride, piece.column_stride),
        target,
        (target_step, piece.width, 1),
    )
