"""A decoder-only model: embedding, blocks of mixer and feed-forward network, norm and head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.batch import GRANULE, MAX_ROWS, ForwardInput, ForwardOutput
from draftwood.cache.base import LayerState
from draftwood.cache.sequence import Sequence
from draftwood.cache.spec import KVSpec
from draftwood.kernels.norm import rms_norm
from draftwood.kernels.rope import rotation
from draftwood.layers.attention import Attention
from draftwood.layers.delta_net import DeltaNet
from draftwood.layers.embedding import Embedding
from draftwood.layers.linear import Linear
from draftwood.layers.mlp import MLP
from draftwood.layers.step import DecodeStep, PrefillStep
from draftwood.layers.weights import StoredMatrix
from draftwood.models.spec import ModelSpec

StateMaker = Callable[[tuple[KVSpec, KVSpec], int], LayerState]
"""Makes a block's state from the KV types of K and V and the capacity in tokens."""


@dataclass(frozen=True)
class Block:
    """x += mixer(norm(x)); x += mlp(norm(x)).

    mixer: Attention or DeltaNet, whose `decode` and `prefill` take the state that `new_state` makes.
    """

    mixer_norm: Tensor
    mixer: Attention | DeltaNet
    mlp_norm: Tensor
    mlp: MLP
    new_state: StateMaker


class Model:
    """A target. It never learns who drafts, and its arithmetic in a decode pass is per row (DESIGN law 1).

    stored_head: the head as the file has it, for whoever needs a few of its rows.
    """

    def __init__(
        self,
        spec: ModelSpec,
        embedding: Embedding,
        blocks: list[Block],
        output_norm: Tensor,
        head: Linear,
        stored_head: StoredMatrix,
        rates: Tensor,
    ) -> None:
        self.spec, self.embedding, self.blocks = spec, embedding, blocks
        self.output_norm, self.head, self.stored_head = output_norm, head, stored_head
        self.rates = rates
        self.device = str(output_norm.device.type)

    def new_sequence(self, kv: tuple[KVSpec, KVSpec], capacity: int) -> Sequence:
        """Empty states for up to `capacity` committed tokens (a multiple of GRANULE is allocated)."""
        capacity += -capacity % GRANULE
        return Sequence([block.new_state(kv, capacity) for block in self.blocks], capacity, self.device)

    @torch.inference_mode()
    def prefill(self, inputs: ForwardInput, sequence: Sequence) -> ForwardOutput:
        """Read T consecutive tokens that start on a granule boundary, and commit them.

        Only the last granule of a prompt may be short; it is padded here and the padding is dropped.
        """
        count = len(inputs.tokens)
        if sequence.length % GRANULE:
            raise ValueError(f"prefill starts on a multiple of {GRANULE}, not at {sequence.length}")
        missing = -count % GRANULE
        positions = torch.arange(sequence.length, sequence.length + count + missing, device=self.device)
        step = PrefillStep(sequence.length, count, rotation(positions, self.rates))
        x = self.embedding(functional.pad(inputs.tokens, (0, missing)))
        taps = {}
        for index, (block, state) in enumerate(zip(self.blocks, sequence.states, strict=True)):
            x = x + block.mixer.prefill(rms_norm(x, block.mixer_norm, self.spec.eps), state, step)  # type: ignore[arg-type]
            x = x + block.mlp(rms_norm(x, block.mlp_norm, self.spec.eps), prefill=True)
            if index in inputs.wanted:
                taps[index] = x
        sequence.extend(inputs.tokens)
        return self._output(x[:count], {index: tap[:count] for index, tap in taps.items()}, inputs)

    @torch.inference_mode()
    def decode(self, inputs: ForwardInput, sequence: Sequence) -> ForwardOutput:
        """Run R nodes (1..64) after the committed tokens and stage them; `sequence.commit` keeps some."""
        if not 1 <= len(inputs.tokens) <= MAX_ROWS:
            raise ValueError(f"a decode pass has 1 to {MAX_ROWS} rows, not {len(inputs.tokens)}")
        step = DecodeStep.of(inputs, sequence.length, rotation(inputs.positions, self.rates))
        x = self.embedding(inputs.tokens)
        taps = {}
        for index, (block, state) in enumerate(zip(self.blocks, sequence.states, strict=True)):
            x = x + block.mixer.decode(rms_norm(x, block.mixer_norm, self.spec.eps), state, step)  # type: ignore[arg-type]
            x = x + block.mlp(rms_norm(x, block.mlp_norm, self.spec.eps), prefill=False)
            if index in inputs.wanted:
                taps[index] = x
        return self._output(x, taps, inputs)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden float32 [N, E] of a pass -> float32 [N, V], in the decode arithmetic whatever the pass was."""
        return (
            torch.cat([self.head(rows) for rows in hidden.split(MAX_ROWS)])
            if len(hidden) > MAX_ROWS
            else self.head(hidden)
        )

    def _output(self, x: Tensor, taps: dict[int, Tensor], inputs: ForwardInput) -> ForwardOutput:
        features = torch.cat([taps[index] for index in inputs.wanted], -1) if inputs.wanted else None
        return ForwardOutput(rms_norm(x, self.output_norm, self.spec.eps), features)
