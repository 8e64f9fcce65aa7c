"""The gated delta net mixer of hybrid models (SPEC-qwen35 2.3)."""

from __future__ import annotations

from torch import Tensor

from draftwood.cache.recurrent import RecurrentState
from draftwood.cache.step import DecodeStep, PrefillStep
from draftwood.kernels.delta_rule import DeltaShape, load_gated_norm
from draftwood.layers.linear import Linear, Projection


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

    def _finish(self, mixed: Tensor, z: Tensor, prefill: bool) -> Tensor:
        return self.out(self._gated_norm(mixed, z, self.norm, self.shape.eps), prefill)

    def decode(self, x: Tensor, state: RecurrentState, step: DecodeStep) -> Tensor:
        """Nodes of a tree: x float32 [R, E] -> [R, E]."""
        raw, z, b, a = self.inputs(x)
        return self._finish(state.stage(raw, a, b, step), z, prefill=False)

    def prefill(self, x: Tensor, state: RecurrentState, step: PrefillStep) -> Tensor:
        """Consecutive tokens on granules: x float32 [T, E] -> [T, E]."""
        raw, z, b, a = self.inputs(x, prefill=True)
        return self._finish(state.prefill(raw, a, b, step.count), z, prefill=True)
