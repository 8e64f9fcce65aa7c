"""Made-up weights: healthy tensors, and a model that stays finite over 64 layers and says many things."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from draftwood.batch import ForwardInput
from draftwood.cache.registry import kv_pair
from draftwood.formats.header import ModelSource
from draftwood.kernels.dequant import dequantise
from draftwood.layers.weights import Weights
from draftwood.models import known
from draftwood.models.registry import architecture
from draftwood.models.synthetic import LOGIT_SPREAD, SyntheticModel, distribution

TINY = "qwen3.6-27b-tiny"


def synthetic(name: str) -> SyntheticModel:
    return SyntheticModel(known.header(name))


@cache
def deep() -> SyntheticModel:
    """The tiny variant with the real one's 64 layers."""
    keys = {**known.header(TINY).metadata, "qwen35.block_count": 64}
    return SyntheticModel(known.target("qwen3.6-27b", known.Changes(1024, keys)))


@pytest.mark.parametrize("name", [TINY, f"{TINY}-dflash:q8_0", f"{TINY}-dflash:q4_k_m"])
def test_every_tensor_has_its_deviation(name: str, device: str) -> None:
    model = synthetic(name)
    for info in model.tensors.values():
        raw = model.tensor(info.name, device)
        assert raw.device.type == device and raw.nbytes == info.nbytes
        assert raw.shape == (*info.shape[:-1], info.block_type.row_bytes(info.shape[-1]))
        weights = dequantise(raw, info.block_type).double()
        assert weights.isfinite().all()
        mean, std = distribution(info)
        if weights.numel() >= 512:
            assert float(weights.std()) == pytest.approx(std, rel=0.12), info.name
            assert float(weights.mean()) == pytest.approx(mean, abs=0.12 * std), info.name


def test_deviations_keep_the_size_of_what_is_multiplied() -> None:
    infos = synthetic("qwen3.6-27b").tensors
    assert distribution(infos["blk.0.ffn_down.weight"]) == (0, 1 / math.sqrt(17408))
    assert distribution(infos["output.weight"]) == (0, LOGIT_SPREAD / math.sqrt(5120))
    assert distribution(infos["token_embd.weight"]) == (0, 1)
    assert {distribution(info) for name, info in infos.items() if "norm" in name} == {(1, 0.1)}


def test_delta_nets_forget_as_real_ones_do() -> None:
    """SPEC-qwen35 2.3: the decay is exp(ssm_a * softplus(a + dt bias)), so ssm_a is negative."""
    model = deep()
    layers = [i for i in range(64) if (i + 1) % 4]
    kind = model.tensors["blk.0.ssm_a"].block_type
    a = torch.cat([dequantise(model.tensor(f"blk.{i}.ssm_a", "cpu"), kind) for i in layers])
    bias = torch.cat([dequantise(model.tensor(f"blk.{i}.ssm_dt.bias", "cpu"), kind) for i in layers])
    assert float(a.max()) < -1 and float(a.min()) > -16
    step = torch.nn.functional.softplus(bias)
    assert float(step.min()) > 1e-4 and float(step.max()) < 1
    decay = torch.exp(a * step)
    assert float(decay.median()) > 0.8 and float(decay.min()) > 1e-3


def test_tensors_differ_by_name_and_model() -> None:
    model, draft = synthetic(TINY), synthetic(f"{TINY}-dflash:q4_k_m")
    gates = [source.tensor(f"blk.{i}.ffn_gate.weight", "cpu") for source in (model, draft) for i in (0, 1)]
    assert all(not torch.equal(gates[i], gates[j]) for i in range(4) for j in range(i))


def test_the_same_bytes_whenever_they_are_drawn_and_in_every_variant(device: str) -> None:
    eight, all_layers = synthetic(TINY), deep()
    for name in ("blk.3.attn_v.weight", "blk.6.attn_qkv.weight", "output.weight", "blk.0.ssm_a"):
        first = eight.tensor(name, "cpu")
        assert torch.equal(first, eight.tensor(name, device).cpu())
        assert torch.equal(first, all_layers.tensor(name, device).cpu())
    assert eight.fingerprint != all_layers.fingerprint == deep().fingerprint


def test_it_says_that_it_is_synthetic() -> None:
    model = synthetic(TINY)
    assert model.synthetic and model.get("draftwood.synthetic") is True
    assert "synthetic" in model.get("general.name")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_64_layers_stay_healthy(dtype: str, device: str) -> None:
    source: ModelSource = deep()
    module = architecture(source)
    spec = module.read_spec(source)
    model = module.build(spec, Weights(source, device, dtype))
    tokens = torch.arange(128, device=device) * 7 % spec.vocab
    wanted = tuple(range(spec.layers))
    sequence = model.new_sequence(kv_pair("f32"), 256)
    output = model.prefill(ForwardInput(tokens, torch.arange(128, device=device), wanted=wanted), sequence)
    assert output.features is not None
    sizes = output.features.view(128, 64, spec.hidden).square().mean((0, 2)).sqrt()
    # The residual grows with the root of the depth: every layer adds about as much.
    assert 1 < float(sizes[0]) < 3 and float(sizes[-1]) < 12
    assert (sizes.diff() > -0.2).all()
    logits = model.logits(output.hidden)
    assert float(logits.std()) == pytest.approx(LOGIT_SPREAD, rel=0.1)
    # Neither one answer for everything, nor the same features for every token.
    assert len(logits.argmax(1).unique()) > 60
    unit = output.hidden / output.hidden.norm(dim=1, keepdim=True)
    assert float((unit @ unit.T - torch.eye(128, device=device)).abs().mean()) < 0.3
    for state in sequence.states:
        assert all(t.isfinite().all() for t in vars(state).values() if isinstance(t, torch.Tensor))
