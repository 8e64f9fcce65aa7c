"""The contract of a KV type, run for every registered one; and of the states around them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftwood.cache.kv import KVState, poison
from draftwood.cache.registry import KV_TYPES, kv_pair, kv_spec, load_plane
from draftwood.errors import UsageError

HEADS, WIDTH, CAPACITY = 2, 64, 128
TOLERANCE = {"f32": 0.0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 1e-2}


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))


def state(kv: str, device: str) -> KVState:
    made = KVState(kv_pair(kv), HEADS, WIDTH, CAPACITY, device)
    poison(made)
    return made


@pytest.mark.parametrize("kv", [*KV_TYPES, "q8_0/f16", "bf16/q8_0"])
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
    error = (made.keys.read(0, 40) - data.transpose(0, 1)).norm() / data.norm()
    assert float(error) <= TOLERANCE[kv]


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


def test_q8_0_is_ggmls_format() -> None:
    """scale = max / 127 in float16, code = round(x / scale): the blocks that ggml's quantiser makes."""
    from gguf import GGMLQuantizationType, quants

    from draftwood.cache.q8_0 import encode

    data = rows(8).reshape(16, WIDTH)
    data[3, :32] = 0
    expected = torch.from_numpy(quants.quantize(data.numpy(), GGMLQuantizationType.Q8_0)).unflatten(-1, (-1, 34))
    codes, scale = encode(data)
    assert torch.equal(scale, expected[..., :2].contiguous().view(torch.float16).squeeze(-1))
    assert (codes.unflatten(-1, (-1, 32)).int() - expected[..., 2:].view(torch.int8).int()).abs().max() <= 1


def test_names_and_refusals() -> None:
    assert [kind.name for kind in kv_pair("Q8/bfloat16")] == ["q8_0", "bf16"]
    with pytest.raises(UsageError, match="f32, f16, bf16, q8_0"):
        kv_spec("q9_9")
    with pytest.raises(UsageError, match="multiple of 32"):
        KVState(kv_pair("q8_0"), 1, 40, 64, "cpu")
