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
from draftwood.cache.step import DecodeStep, PrefillStep
from draftwood.kernels.norm import load_add_rms_norm, load_rms_norm
from draftwood.kernels.operand import Operands
from draftwood.kernels.rope import rotation
from draftwood.layers.attention import Attention
from draftwood.layers.delta_net import DeltaNet
from draftwood.layers.embedding import Embedding
from draftwood.layers.linear import Linear
from draftwood.layers.mlp import MLP
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


class Taps:
    """The outputs of the wanted layers side by side, float32 [N, taps * E], filled as a pass goes; None of none."""

    def __init__(self, wanted: tuple[int, ...], rows: Tensor) -> None:
        self._places = {layer: place for place, layer in enumerate(wanted)}
        self._taken = rows.new_empty(len(rows), len(wanted), rows.shape[1]) if wanted else None

    def take(self, layer: int, rows: Tensor) -> None:
        """Copy a layer's output, if it is wanted."""
        if self._taken is not None and layer in self._places:
            self._taken[:, self._places[layer]] = rows

    @property
    def features(self) -> Tensor | None:
        """What was taken."""
        return None if self._taken is None else self._taken.flatten(1)


class Model:
    """A target. It never learns who drafts, and its arithmetic in a decode pass is per row (DESIGN law 1).

    stored_head: the head as the file has it, for whoever needs a few of its rows. operands: what the matrices take.
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
        operands: Operands,
    ) -> None:
        self.spec, self.embedding, self.blocks = spec, embedding, blocks
        self.output_norm, self.head, self.stored_head = output_norm, head, stored_head
        self.rates = rates
        self.device = str(output_norm.device.type)
        self._norm, self._add_norm = load_rms_norm(self.device), load_add_rms_norm(self.device)
        self._operands = operands
        self._following = [block.mixer_norm for block in blocks[1:]] + [output_norm]

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
        x, eps = self.embedding(functional.pad(inputs.tokens, (0, missing))), self.spec.eps
        taps = Taps(inputs.wanted, x[:count])
        normed = self._norm(x, self.blocks[0].mixer_norm, eps)
        for index, (block, state, norm) in enumerate(zip(self.blocks, sequence.states, self._following, strict=True)):
            # One buffer for normed rows: made anew they would lie where they part what a GPU has room for.
            self._add_norm(x, block.mixer.prefill(normed, state, step), block.mlp_norm, eps, out=normed)  # type: ignore[arg-type]
            self._add_norm(x, block.mlp(normed, prefill=True), norm, eps, out=normed)
            taps.take(index, x[:count])
        sequence.extend(inputs.tokens)
        return ForwardOutput(normed[:count], taps.features)

    @torch.inference_mode()
    def decode(self, inputs: ForwardInput, sequence: Sequence) -> ForwardOutput:
        """Run R nodes (1..64) after the committed tokens and stage them; `sequence.commit` keeps some."""
        if not 1 <= len(inputs.tokens) <= MAX_ROWS:
            raise ValueError(f"a decode pass has 1 to {MAX_ROWS} rows, not {len(inputs.tokens)}")
        step = DecodeStep(inputs, sequence.committed, rotation(inputs.positions, self.rates))
        x, eps, add_norm = self.embedding(inputs.tokens), self.spec.eps, self._operands.add_norm
        taps = Taps(inputs.wanted, x)
        operand = add_norm(x, None, self.blocks[0].mixer_norm, eps)
        for index, (block, state, norm) in enumerate(zip(self.blocks, sequence.states, self._following, strict=True)):
            # No name for products, so that one is gone before the next layer needs room.
            operand = add_norm(x, block.mixer.decode(operand, state, step, self._operands), block.mlp_norm, eps)  # type: ignore[arg-type]
            operand = add_norm(x, block.mlp.decode(operand, self._operands), norm, eps)
            taps.take(index, x)
        return ForwardOutput(operand if isinstance(operand, Tensor) else self._norm(x, norm, eps), taps.features)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden float32 [N, E] of a pass -> float32 [N, V], in the decode arithmetic whatever the pass was."""
        return (
            torch.cat([self.head(rows) for rows in hidden.split(MAX_ROWS)])
            if len(hidden) > MAX_ROWS
            else self.head(hidden)
        )
