"""The gated delta net mixer of hybrid models (SPEC-qwen35 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from draftwood.cache.recurrent import RecurrentState
from draftwood.kernels.activation import sigmoid, silu, softplus
from draftwood.kernels.delta_rule import DeltaShape
from draftwood.kernels.norm import rms_norm
from draftwood.layers.linear import Linear, Projection
from draftwood.layers.step import DecodeStep, PrefillStep


class DeltaNet:
    """Convolution, gated delta rule, gated norm.

    inputs: the qkv, z, beta and alpha matrices. conv: float32 [4, F], oldest tap first. rate: -exp(A_log) [Hv].
    bias: dt bias [Hv]. norm: [V]. tape: dtype the raw projection is rounded to in every mode (DESIGN section 4).
    """

    def __init__(
        self,
        inputs: Projection,
        out: Linear,
        shape: DeltaShape,
        conv: Tensor,
        rate: Tensor,
        bias: Tensor,
        norm: Tensor,
        tape: torch.dtype,
    ) -> None:
        self.inputs, self.out, self.shape = inputs, out, shape
        self.conv, self.rate, self.bias, self.norm, self.tape = conv, rate, bias, norm, tape

    def _project(self, x: Tensor, prefill: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [N, E] -> raw projection [N, F] in the tape's dtype, z [N, Hv V], log decay g [N, Hv], beta [N, Hv]."""
        raw, z, b, a = self.inputs(x, prefill)
        return raw.to(self.tape), z, self.rate * softplus(a + self.bias), sigmoid(b)

    def _finish(self, mixed: Tensor, z: Tensor, prefill: bool) -> Tensor:
        normed = rms_norm(mixed, self.norm, self.shape.eps).flatten(1)
        return self.out(normed * silu(z), prefill)

    def decode(self, x: Tensor, state: RecurrentState, step: DecodeStep) -> Tensor:
        """Nodes of a tree: x float32 [R, E] -> [R, E]."""
        raw, z, g, beta = self._project(x, prefill=False)
        return self._finish(state.stage(raw, g, beta, step.parents, step.order), z, prefill=False)

    def prefill(self, x: Tensor, state: RecurrentState, step: PrefillStep) -> Tensor:
        """Consecutive tokens on granules: x float32 [T, E] -> [T, E]."""
        raw, z, g, beta = self._project(x, prefill=True)
        return self._finish(state.prefill(raw, g, beta, step.count), z, prefill=True)
