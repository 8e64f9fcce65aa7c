# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The decoders of `hopper`: warps that copy blocks of rows as they are kept, turn them into halves by the KV type's own
load function and put these where wgmma reads them (README.md).

Letters: D head dim, C committed rows.
"""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, mbarrier

from draftwood.kernels.codec import tile_layout


@gluon.constexpr_function
def _who_copies(tile, warps):
    """Sixteen bytes a lane, or a row."""
    each = min(128 // tile.dtype.primitive_bitwidth, tile.shape[1])
    across = min(tile.shape[1] // each, 32)
    return gl.BlockedLayout([1, each], [32 // across, across], [warps, 1], [1, 0])


@gluon.jit
def _places(at, stop, C, staging, p_path, KEYS: gl.constexpr, PATH: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows of the planes that hold positions at .. at+KEYS-1, and which of these are below `stop`."""
    b_row = at + gl.arange(0, KEYS, LAYOUT)
    m_row = b_row < stop
    if PATH:
        m_staged = b_row >= C
        b_node = gl.load(p_path + (b_row - C), mask=m_row & m_staged, other=0)
        b_row = gl.where(m_staged, staging + b_node.to(gl.int32), b_row)
    return b_row, m_row


@gluon.jit
def _copy(p_field, tile, base, at, stop, C, staging, p_path, PATH: gl.constexpr):
    """Begin to copy a field's rows of positions at .. into its tile; from `stop` on, zeros."""
    KEYS: gl.constexpr = tile.shape[0]
    WIDTH: gl.constexpr = tile.shape[1]
    WHO: gl.constexpr = _who_copies(tile, gl.num_warps())
    o_value = gl.arange(0, WIDTH, gl.SliceLayout(0, WHO))
    if PATH:
        b_row, m_row = _places(at, stop, C, staging, p_path, KEYS, PATH, gl.SliceLayout(1, WHO))
        p_row = p_field + base * WIDTH + (b_row[:, None] * WIDTH + o_value[None, :])
        async_copy.async_copy_global_to_shared(tile, p_row, mask=m_row[:, None])
    else:
        # Whole blocks: one condition, and addresses that differ by numbers known here.
        o_row = gl.arange(0, KEYS, gl.SliceLayout(1, WHO))
        p_row = p_field + (base + at) * WIDTH + (o_row[:, None] * WIDTH + o_value[None, :])
        m_all = gl.full([KEYS, WIDTH], 0, gl.int32, WHO) + at < stop
        async_copy.async_copy_global_to_shared(tile, p_row, mask=m_all)


@gluon.jit
def _copy_wide(
    tensors, tiles, place, base, at, stop, C, staging, p_path, FIELDS: gl.constexpr, PATH: gl.constexpr,
):  # fmt: skip
    """All fields but those of one number a row."""
    for number in gl.static_range(FIELDS):
        if len(tiles[number].shape) == 3:
            _copy(tensors[number], tiles[number].index(place), base, at, stop, C, staging, p_path, PATH)
    async_copy.commit_group()


@gluon.jit
def _load_norms(p_field, base, at, stop, C, staging, p_path, KEYS: gl.constexpr, PATH: gl.constexpr):
    """A field of one number a row, which is less than can be copied: by way of registers."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    b_row, m_row = _places(at, stop, C, staging, p_path, KEYS, PATH, LAYOUT)
    return gl.load(p_field + base + b_row, mask=m_row, other=0.0)


def _value(constant: Any) -> Any:
    return getattr(constant, "value", constant)


def tiles_for(tensors: Any, widths: Any, number: Any, rows: Any, _semantic: Any = None) -> Any:
    """A codec's tensors with room in shared memory for `number` tiles of `rows` rows of each field, which have so many
    numbers a row."""
    made = []
    for tensor, width in zip(tensors, _value(widths), strict=False):
        dtype, shape = tensor.dtype.element_ty, [_value(number), _value(rows)]
        if _value(width) == 1:
            layout = gl.SwizzledSharedLayout(1, 1, 1, [0])
        else:
            shape, layout = [*shape, _value(width)], tile_layout(dtype, _value(width))
        made.append(_semantic.allocate_shared(dtype, shape, layout, None))
    tables = [tensor for tensor in list(tensors)[len(made) :] if _value(tensor) is not None]
    return gl.tuple([*made, *tables])


def _tables(tiles: Any, fields: Any, entries: Any, _semantic: Any = None) -> Any:
    """The tables behind tiles, read into registers, `entries` numbers each."""
    tables = []
    for table in list(tiles)[_value(fields) :]:
        places = [_semantic.add(table, _semantic.to_tensor(place), True) for place in range(_value(entries))]
        loads = (_semantic.load(place, None, None, (), "", "", "", False) for place in places)
        tables.append(gl.tuple([*loads]))
    return gl.tuple(tables)


def _of_tile(tiles: Any, tables: Any, fields: Any, place: Any, _semantic: Any = None) -> Any:
    """What a codec's load takes: a tile of each field, and the tables."""
    indexed = [_semantic.memdesc_index(tile, place) for tile in list(tiles)[: _value(fields)]]
    return gl.tuple([*indexed, *tables])


for _function in (tiles_for, _tables, _of_tile):
    setattr(_function, "__triton_builtin__", True)  # noqa: B010


@gluon.jit
def _decode(
    tensors, tiles, rows, full, free, base, first, stop, C, staging, p_path, LOAD: gl.constexpr, FIELDS: gl.constexpr,
    ENTRIES: gl.constexpr, PATH: gl.constexpr,
):  # fmt: skip
    """The decoders' part: all blocks of the keys or of the values, copied as many ahead as there are tiles."""
    STAGES: gl.constexpr = rows.shape[0]
    KEYS: gl.constexpr = rows.shape[1]
    D: gl.constexpr = rows.shape[2]
    PART: gl.constexpr = tiles[0].shape[1]
    PARTS: gl.constexpr = KEYS // PART
    AHEAD: gl.constexpr = tiles[0].shape[0] // PARTS
    NORMS: gl.constexpr = len(tiles[0].shape) == 2
    tables = _tables(tiles, FIELDS, ENTRIES)
    for part in gl.static_range(AHEAD * PARTS):
        if NORMS:
            b_norm = _load_norms(tensors[0], base, first + part * PART, stop, C, staging, p_path, PART, PATH)
            tiles[0].index(part).store(b_norm)
        _copy_wide(tensors, tiles, part, base, first + part * PART, stop, C, staging, p_path, FIELDS, PATH)
    for block in range((stop - first + KEYS - 1) // KEYS):
        mbarrier.wait(free.index(block % STAGES), (block // STAGES & 1) ^ 1)
        for part in gl.static_range(PARTS):
            place, at = block % AHEAD * PARTS + part, first + (block + AHEAD) * KEYS + part * PART
            if NORMS:
                b_norm = _load_norms(tensors[0], base, at, stop, C, staging, p_path, PART, PATH)
            async_copy.wait_group(AHEAD * PARTS - 1)
            b_part = LOAD(_of_tile(tiles, tables, FIELDS, place), 0, None, None, 0, D, D)
            rows.index(block % STAGES).slice(part * PART, PART).store(b_part)
            if part == PARTS - 1:
                fence_async_shared()
                mbarrier.arrive(full.index(block % STAGES), count=1)
            if NORMS:
                tiles[0].index(place).store(b_norm)
            _copy_wide(tensors, tiles, place, base, at, stop, C, staging, p_path, FIELDS, PATH)
    async_copy.wait_group(0)


@gluon.jit
def _copy_halves(tensors, rows, full, free, base, first, stop, C, staging, p_path, PATH: gl.constexpr):
    """As `_decode`, of rows that are kept as halves: they are copied to where wgmma reads them."""
    STAGES: gl.constexpr = rows.shape[0]
    KEYS: gl.constexpr = rows.shape[1]
    AHEAD: gl.constexpr = STAGES - 1
    blocks = (stop - first + KEYS - 1) // KEYS
    for block in range(blocks + AHEAD):
        if block < blocks:
            mbarrier.wait(free.index(block % STAGES), (block // STAGES & 1) ^ 1)
            _copy(tensors[0], rows.index(block % STAGES), base, first + block * KEYS, stop, C, staging, p_path, PATH)
        async_copy.commit_group()
        if block >= AHEAD:
            async_copy.wait_group(AHEAD)
            fence_async_shared()
            mbarrier.arrive(full.index((block - AHEAD) % STAGES), count=1)
    async_copy.wait_group(0)


@gluon.jit
def provide(
    tensors, tiles, rows, full, free, base, first, stop, C, staging, p_path, LOAD: gl.constexpr, FIELDS: gl.constexpr,
    ENTRIES: gl.constexpr, PATH: gl.constexpr,
):  # fmt: skip
    """All blocks of the keys or of the values, by what they are kept as."""
    if LOAD is None:
        _copy_halves(tensors, rows, full, free, base, first, stop, C, staging, p_path, PATH)
    else:
        _decode(tensors, tiles, rows, full, free, base, first, stop, C, staging, p_path, LOAD, FIELDS, ENTRIES, PATH)
