"""The gated delta net mixer of hybrid models (SPEC-qwen35 2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from draftwood.cache.recurrent import RecurrentState
from draftwood.cache.step import DecodeStep, PrefillStep
from draftwood.kernels.delta_rule import DeltaShape, load_gated_norm
from draftwood.kernels.operand import Operands
from draftwood.layers.linear import Linear, Projection

if TYPE_CHECKING:
    from draftwood.kernels.operand import Operand, Product


class DeltaNet:
    """Projections, the state's convolution and delta rule, gated norm.

    inputs: the qkv, z, beta and alpha matrices. norm: [V].
    """

    def __init__(
        self,
        inputs: Projection,
        out: Linear,
        shape: DeltaShape,
        norm: Tensor,
    ) -> None:
        self.inputs, self.out, self.shape, self.norm = inputs, out, shape, norm
        self._gated_norm = load_gated_norm(str(norm.device.type))

    def decode(self, x: Operand, state: RecurrentState, step: DecodeStep, operands: Operands) -> Product:
        """Nodes of a tree: x [R, E] -> [R, E]."""
        raw, z, b, a = self.inputs(x)
        return self.out.product(operands.gated_norm(state.stage(raw, a, b, step), z, self.norm, self.shape.eps))

    def prefill(self, x: Tensor, state: RecurrentState, step: PrefillStep) -> Tensor:
        """Consecutive tokens on granules: x float32 [T, E] -> [T, E]."""
        raw, z, b, a = self.inputs(x, prefill=True)
        mixed = self._gated_norm(state.prefill(raw, a, b, step.count), z, self.norm, self.shape.eps)
        return self.out(mixed, prefill=True)
