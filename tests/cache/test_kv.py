"""The contract of a KV type, run for every registered one; and of the states around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from draftwood.cache.kv import KVState, poison
from draftwood.cache.registry import KV_TYPES, kv_pair, kv_spec, load_plane
from draftwood.errors import UsageError
from draftwood.kernels.attention import attend_row

HEADS, WIDTH, CAPACITY = 2, 64, 128
TOLERANCE = {
    "f32": 0.0,
    "f16": 1e-3,
    "bf16": 8e-3,
    "q8_0": 6e-3,
    "q5_1": 0.039,
    "q5_0": 0.044,
    "q4_1": 0.08,
    "q4_0": 0.088,
    "tq4_0": 0.097,
    "tq3_0": 0.186,
    "tq2_0": 0.345,
}
"""The relative error of Gaussian rows in heads of 64, at most."""

MIXED = ("q8_0/q4_0", "q8_0/tq3_0", "f16/q8_0", "tq4_0/tq3_0", "q5_1/q4_0", "bf16/tq2_0")


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))


def state(kv: str, device: str) -> KVState:
    made = KVState(kv_pair(kv), HEADS, WIDTH, CAPACITY, device)
    poison(made)
    return made


@pytest.mark.parametrize("kv", [*KV_TYPES, *MIXED])
def test_a_row_is_the_same_staged_in_a_chain_staged_in_a_tree_and_prefilled(kv: str, device: str) -> None:
    data_k, data_v = rows(6).to(device), rows(6, 1).to(device)
    chain, tree, read = state(kv, device), state(kv, device), state(kv, device)
    read.append(data_k, data_v, 6)
    chain.stage(data_k, data_v, in_place=True)
    chain.commit(torch.arange(6, device=device), 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2], device=device)
    tree.stage(data_k[order], data_v[order], in_place=False)
    tree.commit(torch.argsort(order), 6)
    for plane in ("keys", "values"):
        expected = getattr(read, plane).read(0, 6)
        assert torch.equal(getattr(chain, plane).read(0, 6), expected)
        assert torch.equal(getattr(tree, plane).read(0, 6), expected)
        assert torch.isfinite(expected).all()


@pytest.mark.parametrize("kv", list(KV_TYPES))
def test_values_survive_within_the_types_rounding(kv: str, device: str) -> None:
    made = state(kv, device)
    data = rows(40).to(device)
    made.append(data, data, 40)
    for plane in (made.keys, made.values):
        found = plane.leave(plane.read(0, 40).transpose(0, 1).contiguous())
        assert float((found - data).norm() / data.norm()) <= TOLERANCE[kv]


@pytest.mark.parametrize("kv", list(KV_TYPES))
def test_a_row_that_was_not_written_shows(kv: str, device: str) -> None:
    """So that a poisoned cache betrays an attention over rows that no pass has laid there."""
    made = state(kv, device)
    made.append(rows(3).to(device), rows(3, 1).to(device), 3)
    for plane in (made.keys, made.values):
        assert plane.read(0, 3).isfinite().all()
        assert plane.read(3, 10).isnan().all()


@pytest.mark.parametrize("kv", list(KV_TYPES))
@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
def test_a_kept_row_depends_on_no_other(kv: str, width: int, device: str) -> None:
    """Bit for bit, however many rows are written together (DESIGN law 1)."""
    data = torch.randn(64, HEADS, width, generator=torch.Generator().manual_seed(width)).to(device)
    plane = load_plane(kv_spec(kv))
    whole, part = plane(HEADS, width, 64, device), plane(HEADS, width, 64, device)
    whole.write(data, 0)
    for first, count in ((0, 1), (1, 1), (2, 2), (4, 3), (7, 5), (12, 17), (29, 35)):
        part.write(data[first : first + count].clone(), first)
    for name, buffer in whole.buffers().items():
        assert torch.equal(part.buffers()[name][:, :64], buffer[:, :64]), name


@pytest.mark.parametrize("kv", [*KV_TYPES, *MIXED])
@pytest.mark.parametrize("width", [64, 96])
def test_attention_in_the_kept_space_is_attention(kv: str, width: int, device: str) -> None:
    """The query enters once and the mix leaves once; between the plainly decoded rows the result is the same."""
    made = KVState(kv_pair(kv), HEADS, width, CAPACITY, device)
    generator = torch.Generator().manual_seed(1)
    query, keys, values = (
        torch.randn(n, h, width, generator=generator).to(device) for n, h in ((4, 6), (50, 2), (50, 2))
    )
    made.append(keys, values, 50)
    kept = [
        plane.leave(rows.transpose(0, 1).contiguous()).transpose(0, 1)
        for plane, rows in zip((made.keys, made.values), made.read(0, 50), strict=True)
    ]
    inside = made.enter(query)
    found = made.leave(torch.stack([attend_row(row, *made.read(0, 50), 0.125) for row in inside]))
    expected = torch.stack([attend_row(row, *kept, 0.125) for row in query])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert torch.equal(made.leave(found.flatten(1)), made.leave(found).flatten(1))


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
def test_plain_floats_are_not_touched(kv: str) -> None:
    made, data = state(kv, "cpu"), rows(8)
    made.append(data, data, 8)
    assert made.enter(data) is data and made.leave(data) is data
    dtype = made.keys.buffers()["data"].dtype
    assert torch.equal(made.read(0, 8)[0], data.to(dtype).float().transpose(0, 1))


@pytest.mark.parametrize("kv", list(KV_TYPES))
def test_rejected_nodes_leave_nothing(kv: str, device: str) -> None:
    made = state(kv, device)
    made.append(rows(10).to(device), rows(10, 1).to(device), 10)
    before = made.keys.read(0, 10).clone()
    made.stage(rows(5, 2).to(device), rows(5, 3).to(device), in_place=False)
    made.commit(torch.tensor([0, 3, 4], device=device), 2)
    assert made.length == 12
    assert torch.equal(made.keys.read(0, 10), before)
    alone = state(kv, device)
    alone.append(rows(5, 2).to(device)[[0, 3]], rows(5, 3).to(device)[[0, 3]], 2)
    assert torch.equal(made.keys.read(10, 12), alone.keys.read(0, 2))


@pytest.mark.parametrize("kv", list(KV_TYPES))
def test_snapshot_truncate_and_size(kv: str) -> None:
    made = state(kv, "cpu")
    made.append(rows(20), rows(20, 1), 20)
    saved, before = made.snapshot(), made.values.read(0, 20).clone()
    made.truncate(5)
    made.append(rows(20, 8), rows(20, 9), 20)
    made.restore(saved)
    assert made.length == 20
    assert torch.equal(made.values.read(0, 20), before)
    with pytest.raises(ValueError, match="truncate"):
        made.truncate(21)
    plane = load_plane(kv_spec(kv))(HEADS, WIDTH, CAPACITY, "cpu")
    assert plane.nbytes == plane.rows * HEADS * kv_spec(kv).row_bytes(WIDTH)


def test_names_and_aliases() -> None:
    assert " ".join(KV_TYPES) == "f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 tq4_0 tq3_0 tq2_0"
    assert [kind.name for kind in kv_pair("Q8/bfloat16")] == ["q8_0", "bf16"]
    assert [kind.name for kind in kv_pair("Turbo4/TQ3")] == ["tq4_0", "tq3_0"]
    assert kv_spec(" turbo2 ").name == "tq2_0" and kv_spec("q4").name == "q4_0" and kv_spec("TQ3_0").name == "tq3_0"
    spellings = [s for spec in KV_TYPES.values() for s in (spec.name, *spec.aliases)]
    assert len(spellings) == len(set(spellings)) and all(s == s.lower() for s in spellings)


@pytest.mark.parametrize(
    ("width", "bits"),
    [
        (256, (32, 16, 16, 8.5, 6, 5.5, 5, 4.5, 4.0625, 3.0625, 2.0625)),
        (64, (32, 16, 16, 8.5, 6, 5.5, 5, 4.5, 4.25, 3.25, 2.25)),
    ],
)
def test_bits_a_value(width: int, bits: tuple[float, ...]) -> None:
    assert tuple(spec.bits(width) for spec in KV_TYPES.values()) == bits


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 96, 112, 128, 256])
def test_every_type_is_as_small_as_it_says_at_every_width_it_takes(width: int) -> None:
    for spec in KV_TYPES.values():
        if width % spec.head_multiple == 0:
            made = load_plane(spec)(1, width, 64, "cpu")
            made.write(torch.randn(3, 1, width), 0)
            assert made.read(0, 3).shape == (1, 3, width)
            assert made.nbytes == made.rows * spec.row_bytes(width)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        action()
    sentence = str(caught.value)
    assert len(sentence) < 300 and "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_an_unknown_type_is_answered_with_the_known_ones() -> None:
    for wrong in ("q9_9", "q8_0/q9_9", "q9_9" * 100):
        sentence = refusal(lambda: kv_pair(wrong))  # noqa: B023
        for known in ("'q9_9", "f32 32,", "q8_0 8.5,", "q4_0 4.5,", "tq3_0 3.125,", "tq2_0 2.125 "):
            assert known in sentence


def test_a_head_that_does_not_fit_is_answered_with_the_types_that_do() -> None:
    sentence = refusal(lambda: KVState(kv_pair("f16/q8_0"), 1, 80, 64, "cpu"))
    assert "q8_0 needs" in sentence and "multiple of 32" in sentence and "is 80" in sentence
    assert "f16 16, bf16 16, tq4_0 4.2, tq3_0 3.4, tq2_0 2.2." in sentence
    sentence = refusal(lambda: KVState(kv_pair("turbo3"), 1, 40, 64, "cpu"))
    assert "tq3_0 needs" in sentence and "multiple of 16" in sentence and sentence.endswith("f32 32, f16 16, bf16 16.")
