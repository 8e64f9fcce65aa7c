"""Attention of a decode pass on Hopper: what its kernels compile to (what they compute: test_tree_attention)."""

from __future__ import annotations

import itertools
import re
from unittest import mock

import pytest
import torch

from draftwood.cache.registry import KV_TYPES
from tests.kernels.compiling import SHARED_LIMIT, compile_kernel, serialised
from tests.kernels.kv_pairs import WIDTHS, kv_cases, loads, plane_for, split_case


def arguments_of(key: str, value: str, width: int) -> dict[str, object]:
    """What both launches take."""
    from draftwood.kernels.attention.hopper import codecs_of

    rows = {"K": plane_for(key, width), "V": plane_for(value, width)}
    made = loads(key, value, width) | {
        "p_q": torch.float32, "p_mixes": torch.float32, "p_sums": torch.float32, "p_committed": torch.int64,
        "scale": 0.09, "all_rows": 96, "plane_rows": 4224, "H": 24, "G": 4,
    }  # fmt: skip
    made |= codecs_of(rows["K"], rows["V"])
    return made


@pytest.mark.parametrize(("target", "case"), kv_cases(hopper=True))
def test_compiles(target: str, case: str) -> None:
    from draftwood.kernels.attention import hopper

    key, value, width = split_case(case)
    tail = {"p_depth": torch.int64, "p_ancestors": torch.int32, "staging": 4160, "path_stride": 64}
    bulk: dict[str, object] = {"begin": 0, "SECOND": False}
    for consumers, kernel, more in (
        (1, "_bulk", bulk | {"begin": 128, "SECOND": True}),
        (2, "_bulk", bulk),
        (1, "_tail", tail),
    ):
        shape = hopper.shape_of(plane_for(key, width), plane_for(value, width), width, consumers)
        warps, keys = shape.pop("num_warps"), shape["KEYS"]
        made = compile_kernel(
            getattr(hopper, kernel), target, arguments_of(key, value, width) | more | shape, num_warps=warps
        )
        # Queries and, of a path, addresses, before the loop over keys and after it.
        made.check(matrix=True, spilled=256 if kernel == "_tail" else 64)
        assert not serialised(made.asm), f"{kernel} of {consumers}: {serialised(made.asm)}"
        # What a row's sums are added up by must be the same in all of them.
        layouts = set(re.findall(r"warpsPerCTA = \[(\d), 1\], instrShape = (\[.*?\])", made.ttgir))
        scores, mixes = (str(4 * consumers), f"[16, {keys}, 16]"), (str(4 * consumers), f"[16, {width}, 16]")
        assert layouts == {scores, mixes} and "mma.sync" not in made.asm, layouts


@pytest.mark.parametrize(
    ("capability", "width", "hip", "version", "name"),
    [
        ((9, 0), 256, None, "3.6.0", "hopper"),
        ((9, 0), 64, None, "3.7.1", "hopper"),
        ((9, 0), 32, None, "3.6.0", "triton"),
        ((9, 0), 256, None, "3.5.1", "triton"),
        ((8, 6), 256, None, "3.6.0", "triton"),
        ((12, 0), 256, None, "3.6.0", "triton"),
        ((9, 0), 256, "7.0", "3.6.0", "triton"),
    ],
)
def test_it_is_for_hopper_alone(
    capability: tuple[int, int], width: int, hip: str | None, version: str, name: str
) -> None:
    from draftwood.kernels.attention import triton

    with (
        mock.patch.object(torch.cuda, "get_device_capability", lambda device: capability),
        mock.patch.object(torch.version, "hip", hip),
        mock.patch.object(triton.triton, "__version__", version),
    ):
        filler = triton.filler_of.__wrapped__(torch.device("cuda"), width)
    assert filler.__module__ == f"draftwood.kernels.attention.{name}"


def test_every_pair_has_room() -> None:
    """What a program takes of shared memory, reckoned as the compiler does: places, queries, rows as they are kept."""
    from draftwood.kernels.attention import hopper

    for key, value, width, consumers in itertools.product(KV_TYPES, KV_TYPES, WIDTHS, (1, 2)):
        keys, values = plane_for(key, width), plane_for(value, width)
        shape = hopper.shape_of(keys, values, width, consumers)
        coded = [kept for kept in (keys, values) if kept.halves is None]
        row = sum(field.shape[2] * field.element_size() for kept in coded for field in kept.fields)
        places = shape["K_STAGES"] + shape["V_STAGES"]
        room = (
            (64 * consumers + places * shape["KEYS"]) * width * 2 + shape["AHEAD"] * shape["KEYS"] * row + 16 * places
        )
        assert room <= SHARED_LIMIT["sm_90"], f"{key}/{value} at {width}: {room} bytes"
        # 64 K registers, of which a launch gives all lanes as many, and then as they ask.
        decoding = 64 * shape["DECODERS"]
        lanes = 128 * consumers + decoding
        assert 65536 // lanes // 8 * 8 * lanes - decoding * shape["REGISTERS"] >= 128 * consumers * 208


@pytest.mark.parametrize(("rows", "warps"), [(64, 4), (32, 4), (32, 2), (16, 2)])
@pytest.mark.parametrize(
    ("width", "size", "per_word", "per_four"),
    [
        *((D // 4, 4, 4, 16) for D in WIDTHS), *((D // 8, 4, 4, 32) for D in WIDTHS),
        *((D // 8, 4, 8, 32) for D in WIDTHS), *((D // 16, 4, 16, 64) for D in WIDTHS),
        *((D, 2, 1, 4) for D in WIDTHS), *((D, 4, 1, 4) for D in WIDTHS),
    ],
)  # fmt: skip
def test_lanes_meet_in_no_bank(width: int, size: int, per_word: int, per_four: int, rows: int, warps: int) -> None:
    """Lanes that read a tile's words together, and then store their halves: bytes, nibbles, codes of four and of two
    bits, halves and floats. Every word has a lane."""
    from draftwood.cache.codecs.words import without_conflicts
    from draftwood.kernels.codec import exchanged

    registers, lanes, across = without_conflicts(rows, width, size, per_word, per_four, warps)
    assert len(lanes) == 5 and 1 << len(across) == warps

    def at(number: int, part: list[list[int]]) -> tuple[int, int]:
        row = word = 0
        for bit, (more_rows, more_words) in enumerate(part):
            if number >> bit & 1:
                row, word = row ^ more_rows, word ^ more_words
        return row, word

    everything = registers + lanes + across
    found = {at(number, everything) for number in range(1 << len(everything))}
    assert found == set(itertools.product(range(rows), range(width)))
    if rows < 16 * warps:  # Beside rows of float32: there are too few words for as many a lane.
        return
    own = [word for row, word in registers if not row]
    read = 1
    while read in own and read * size < 16:  # Neighbouring words of a lane, up to 16 bytes of them.
        read *= 2
    every, ways = exchanged(width * size)
    for first in range(0, 32, 128 // (read * size)):
        taken = set()
        for lane in range(first, min(first + 128 // (read * size), 32)):
            row, word = at(lane, lanes)
            byte = row * width * size + (word * size ^ row // every % ways * 16)
            taken |= {(row, byte, (byte + more) // 4 % 32) for more in range(0, read * size, 4)}
        assert len({bank for *_, bank in taken}) == len(taken), f"lanes from {first} read"
    together = sum(1 for word in own if _value(word, per_word, per_four) < 8)
    each = 2 * min(per_word, 8) << together  # Bytes that a lane stores at once.
    for first in range(0, 32, 128 // each):
        taken = set()
        for lane in range(first, first + 128 // each):
            row, word = at(lane, lanes)
            place = _value(word, per_word, per_four)
            byte = 2 * place % 128
            taken |= {(row, place, (byte + more) // 4 ^ (row % 8) << 2) for more in range(0, each, 4)}
        assert len({bank for *_, bank in taken}) == len(taken), f"lanes from {first} store"


def _value(word: int, per_word: int, per_four: int) -> int:
    """The first value of a word."""
    return word // 4 * per_four + word % 4 * per_word
