"""A block-diffusion draft (DFlash, SPEC-dflash section 1): context rows from target features, and the block.

Letters: n context rows, B rows of a block, C cached context rows, E hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from draftwood.batch import GRANULE, MAX_ROWS
from draftwood.cache.device_draft import DeviceDraftContext, DeviceDraftState
from draftwood.cache.kv import KVState
from draftwood.cache.spec import KVSpec
from draftwood.cache.states import attention_kernels_serve, draft_state
from draftwood.errors import DraftMismatchError
from draftwood.kernels.activation import load_silu_gate
from draftwood.kernels.attention.block import block_mask, grouped_mask
from draftwood.kernels.norm import load_rms_norm, rms_norm
from draftwood.kernels.operand import Operands
from draftwood.kernels.rope import frequencies, rotation
from draftwood.layers.draft_attention import ContextProjection, DraftAttention
from draftwood.layers.linear import Linear
from draftwood.layers.mlp import MLP
from draftwood.layers.weights import Weights
from draftwood.models.base import Model
from draftwood.models.draft_spec import DraftSpec, fit
from draftwood.models.pass_buffers import PROJECTED

FEATURE_LIMIT = 65504.0
"""Features are clipped to the range of float16 (SPEC-draft-formats 2.2)."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DraftLayer:
    """x += attention(norm(x)); x += mlp(norm(x))."""

    attention_norm: Tensor
    attention: DraftAttention
    mlp_norm: Tensor
    mlp: MLP

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.attention.nbytes + self.mlp.gate_up.nbytes + self.mlp.down.nbytes


class DraftContext:
    """What a draft keeps of one sequence: K and V of its committed tokens in every layer, absolute positions.

    A sliding layer keeps those that its window reaches.
    """

    def __init__(self, states: Sequence[KVState]) -> None:
        self.states = tuple(states)

    @property
    def length(self) -> int:
        """Context rows held; the block stands at this position."""
        return self.states[0].length

    def truncate(self, length: int) -> None:
        """Drop the rows from `length` on."""
        for state in self.states:
            state.truncate(length)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return sum(state.nbytes for state in self.states)


class DraftModel:
    """The draft's weights. A wrong proposal only costs time, so a row's bits may depend on the other rows.

    fuse, fuse_norm: the matrix over the tapped features and the norm after it. context: K and V of all layers from
    its rows. embed: token ids int64 [n] ->
    float32 [n, E], the target's unless the file has its own. head: hidden float32 [n, E] -> logits, the target's
    too unless the file has its own or names the tokens that are worth a row. head_ids: int64 [N], the target's token
    of each of the head's rows, None where they are all of its tokens. own_bytes: bytes of an own token table and head.
    """

    def __init__(
        self,
        spec: DraftSpec,
        fuse: Linear,
        fuse_norm: Tensor,
        context: ContextProjection,
        layers: Sequence[DraftLayer],
        output_norm: Tensor,
        embed: Function,
        head: Function,
        head_ids: Tensor | None,
        own_bytes: int,
        operands: Operands,
    ) -> None:
        self.spec, self.layers = spec, tuple(layers)
        self.fuse, self.fuse_norm, self.context, self.output_norm = fuse, fuse_norm, context, output_norm
        self.embed, self.head, self.head_ids = embed, head, head_ids
        self.device = str(output_norm.device.type)
        if spec.rope_base is None:
            raise ValueError("the rotary base of a draft is settled by `dflash.fit` first")
        self.rates = frequencies(spec.head_dim, spec.rope_base).to(self.device)
        self._mask = embed(torch.tensor([spec.mask_token], device=self.device)) * spec.embedding_scale
        self._own_bytes = own_bytes
        self._norm, self._operands = load_rms_norm(self.device), operands

    def new_context(self, kv: tuple[KVSpec, KVSpec], capacity: int) -> DraftContext:
        """Empty caches for up to `capacity` committed tokens."""
        size = self.spec.kv_heads, self.spec.head_dim, capacity
        return DraftContext([draft_state(kv, *size, window, self.device) for window in self.spec.windows])

    @torch.inference_mode()
    def context_rows(self, features: Tensor, prefill: bool = False) -> Tensor:
        """norm(fc(features)): float32 [n, taps * E] -> float32 [n, E], the input of every layer's K and V."""
        clipped = features.nan_to_num(nan=0.0).clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
        return rms_norm(self.fuse(clipped, prefill), self.fuse_norm, self.spec.eps)

    @torch.inference_mode()
    def project(self, features: Tensor, context: DraftContext) -> None:
        """Append the K and V of the tokens after the cached ones.

        features: float32 [n, taps * E], the target's outputs of the tapped layers side by side, in the taps'
        order. More than MAX_ROWS rows are read in the prefill form of the weights, PROJECTED at a time.
        """
        count = len(features)
        if count > PROJECTED:
            for rows in features.split(PROJECTED):
                self.project(rows, context)
            return
        prefill = count > MAX_ROWS
        if prefill:
            features = functional.pad(features, (0, 0, 0, -count % GRANULE))
        start = context.length
        turn = rotation(torch.arange(start, start + len(features), device=self.device), self.rates)
        layers = self.context(self.context_rows(features, prefill), turn, prefill)
        for keys, values, state in zip(*layers, context.states, strict=True):
            state.append(keys[:count], values[:count], count)

    @torch.inference_mode()
    def block(self, pending: Tensor, rows: int, context: DraftContext) -> Tensor:
        """Run [pending, mask, mask, ...] at positions C .. C+rows-1; the context stays as it is.

        pending: int64 []. Returns float32 [rows, E] after the output norm; row j speaks of the token AT
        position C + j, so row 0, whose token is known, says nothing.
        """
        committed, eps = context.length, self.spec.eps
        turn = rotation(torch.arange(committed, committed + rows, device=self.device), self.rates)
        masks = {
            kind: grouped_mask(block_mask(rows, committed, *kind, self.device), self.spec.heads, self.spec.kv_heads)
            for kind in set(zip(self.spec.windows, self.spec.causal, strict=True))
        }
        first = self.embed(pending.reshape(1)) * self.spec.embedding_scale
        x = torch.cat((first, self._mask.expand(rows - 1, -1)))
        for layer, state in zip(self.layers, context.states, strict=True):
            mask = masks[layer.attention.window, layer.attention.causal]
            x = x + layer.attention(rms_norm(x, layer.attention_norm, eps), turn, mask, state)
            x = x + layer.mlp(rms_norm(x, layer.mlp_norm, eps), prefill=False)
        return rms_norm(x, self.output_norm, eps)

    def device_context(self, kv: tuple[KVSpec, KVSpec], context: DraftContext) -> DeviceDraftContext | None:
        """The same rows for rounds that read nothing on the host; None where kernels do not serve them."""
        if not attention_kernels_serve(kv, self.spec.head_dim, self.device):
            return None
        windows = zip(context.states, self.spec.windows, strict=True)
        return DeviceDraftContext(
            [DeviceDraftState(kv, rows, window, self.device) for rows, window in windows], self.device
        )

    @torch.inference_mode()
    def project_kept(self, features: Tensor, count: Tensor, context: DeviceDraftContext) -> None:
        """`project` of the first `count` (int64 []) rows of float32 [n, taps * E], without the host."""
        positions = context.committed + torch.arange(len(features), device=self.device)
        layers = self.context(self.context_rows(features), rotation(positions, self.rates), False)
        for keys, values, state in zip(*layers, context.states, strict=True):
            state.store(keys, values, context.committed, count)
        context.committed += count

    @torch.inference_mode()
    def block_on_device(self, pending: Tensor, rows: int, context: DeviceDraftContext) -> Tensor:
        """`block` without the host."""
        eps, committed, add_norm = self.spec.eps, context.committed, self._operands.add_norm
        turn = rotation(committed + torch.arange(rows, device=self.device), self.rates)
        first = self.embed(pending.reshape(1)) * self.spec.embedding_scale
        x = torch.cat((first, self._mask.expand(rows - 1, -1)))
        following = [layer.attention_norm for layer in self.layers[1:]] + [self.output_norm]
        operand = add_norm(x, None, self.layers[0].attention_norm, eps)
        for layer, state, norm in zip(self.layers, context.states, following, strict=True):
            attend = layer.attention.on_device
            operand = add_norm(x, attend(operand, turn, committed, state, self._operands), layer.mlp_norm, eps)
            operand = add_norm(x, layer.mlp.decode(operand, self._operands), norm, eps)
        return self._norm(x, self.output_norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden float32 [n, E] of a block -> float32 [n, N] over the head's rows, whose tokens `token_ids` knows."""
        logits = self.head(hidden)
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def token_ids(self, columns: Tensor) -> Tensor:
        """The target's token ids of columns of the logits, int64 of any shape."""
        return columns if self.head_ids is None else self.head_ids[columns]

    @property
    def nbytes(self) -> int:
        """Bytes of the draft's own matrices."""
        layers = sum(layer.nbytes for layer in self.layers)
        return self.fuse.nbytes + self.context.nbytes + layers + self._own_bytes


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    """The library's SiLU, whose bits may depend on where a value lies."""
    return functional.silu(gate) * up


def build(spec: DraftSpec, weights: Weights, target: Model) -> DraftModel:
    """The draft on the weights' device, `weights` reading a `DraftTensors`.

    Token table and head are the target's unless the file has its own, of the target's vocabulary. Of a draft with a
    shortlist the head has those rows only: the target's, or its own. Errors: see `fit`; a FormatError for a missing
    tensor or one of another shape.
    """
    spec = fit(spec, target.spec)
    hidden, query_width, width = spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    k_norms = [weights.dense(f"blk.{i}.attn_k_norm.weight", (spec.head_dim,)) for i in range(spec.layers)]
    # The block's rows read K and V matrices too, together with the query's: these are in memory twice.
    context = weights.projection([(f"blk.{i}.attn_{kind}", width) for kind in "kv" for i in range(spec.layers)], hidden)

    def layer(i: int) -> DraftLayer:
        at = f"blk.{i}"
        attention = DraftAttention(
            weights.projection(
                [(f"{at}.attn_q", query_width), (f"{at}.attn_k", width), (f"{at}.attn_v", width)], hidden
            ),
            weights.linear(f"{at}.attn_output", hidden, query_width),
            weights.dense(f"{at}.attn_q_norm.weight", (spec.head_dim,)),
            k_norms[i],
            spec.heads,
            spec.kv_heads,
            spec.eps,
            spec.windows[i],
            spec.causal[i],
        )
        mlp = MLP(
            weights.projection([(f"{at}.ffn_gate", spec.ffn), (f"{at}.ffn_up", spec.ffn)], hidden),
            weights.linear(f"{at}.ffn_down", hidden, spec.ffn),
            _gate if weights.device == "cpu" else load_silu_gate(weights.device),
        )
        norms = (weights.dense(f"{at}.{name}.weight", (hidden,)) for name in ("attn_norm", "ffn_norm"))
        return DraftLayer(next(norms), attention, next(norms), mlp)

    vocab, own_bytes = target.spec.vocab, 0
    head_ids = None if spec.shortlist is None else torch.tensor(spec.shortlist, device=weights.device)
    for name in ("token_embd.weight", "output.weight")[: 2 if head_ids is None else 1]:
        if weights.has(name) and weights.info(name).shape[0] != vocab:
            raise DraftMismatchError(
                f"{spec.source}: this draft's {name} has {weights.info(name).shape[0]} rows, the target a "
                f"vocabulary of {vocab} tokens; use the draft made for it."
            )
    embed: Function = target.embedding
    head: Function = target.logits
    if weights.has("token_embd.weight"):
        table = weights.embedding("token_embd.weight", vocab, hidden)
        embed, own_bytes = table, own_bytes + table.nbytes
    matrix = None
    if weights.has("output.weight"):
        matrix = weights.linear("output", vocab if head_ids is None else len(head_ids), hidden)
    elif head_ids is not None:
        matrix = Linear(weights.load([target.stored_head.rows(head_ids)]))
    if matrix is not None:
        head, own_bytes = matrix, own_bytes + matrix.nbytes
    return DraftModel(
        spec,
        weights.linear("fc", hidden, len(spec.taps) * hidden),
        weights.dense("enc.output_norm.weight", (hidden,)),
        ContextProjection(context, k_norms, spec.kv_heads, spec.eps),
        [layer(i) for i in range(spec.layers)],
        weights.dense("output_norm.weight", (hidden,)),
        embed,
        head,
        head_ids,
        own_bytes,
        weights.operands,
    )
