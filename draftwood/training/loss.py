"""Cross-entropy through the frozen head, without ever holding all logits (SPEC-draft-training section 7).

The head gets no gradient, so a chunk's logits give value and gradient at once and are thrown away.

Letters: N blocks, J slots of a block (the block's rows without the anchor), E hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 16384
"""Slots whose logits are held at once: 1.6 GB in bfloat16 at 49,152 tokens."""


@dataclass(frozen=True)
class Weighting:
    """How much each slot counts.

    weights(q, valid): float32 [N, J] from q, the draft's probability of each label, and which slots count; nothing
    is differentiated through it. divisor(valid): what the weighted sum is divided by, float32 [].
    """

    weights: Callable[[Tensor, Tensor], Tensor]
    divisor: Callable[[Tensor], Tensor]


def decay(gamma: float) -> Weighting:
    """w_j = exp(-(j - 1) / gamma), divided by the weights' sum (DFlash, arXiv 2602.06036)."""

    def weights(q: Tensor, valid: Tensor) -> Tensor:
        slots = torch.arange(valid.shape[-1], device=valid.device)
        return torch.exp(-slots / gamma) * valid

    return Weighting(weights, lambda valid: weights(valid, valid).sum().clamp(min=1.0))


def dpace(alpha: float) -> Weighting:
    """w_j = sum over m >= j of prod over i <= m of s_i, s_i = (1 - alpha) q_i + alpha (D-PACE, arXiv 2605.18810).

    Divided by the number of blocks. With alpha 0 the gradient is that of minus the expected tokens of a round.
    """

    def weights(q: Tensor, valid: Tensor) -> Tensor:
        reach = ((1 - alpha) * q + alpha).where(valid, 0.0).cumprod(-1)
        return reach.flip(-1).cumsum(-1).flip(-1) * valid

    return Weighting(weights, lambda valid: valid.any(-1).sum().clamp(min=1).float())


WEIGHTINGS: dict[str, Callable[[float], Weighting]] = {"decay": decay, "dpace": dpace}


@dataclass(frozen=True)
class SlotResult:
    """value: the loss, with its gradient to the hidden rows. right: bool [N, J], label is the draft's first choice
    (valid slots only). q: float32 [N, J], the draft's probability of the label."""

    value: Tensor
    right: Tensor
    q: Tensor


def _chunk(
    hidden: Tensor, head: Tensor, labels: Tensor, valid: Tensor, divisor: Tensor, weighting: Weighting
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [], gradient like hidden, right and q of some blocks; hidden [N, J, E], head [V, E]."""
    logits = hidden @ head.T
    scale = logits.float().logsumexp(-1, keepdim=True)
    target = logits.gather(-1, labels.unsqueeze(-1))
    surprise = scale - target.float()
    q = torch.exp(-surprise.squeeze(-1))
    weights = weighting.weights(q, valid) / divisor
    right = (logits.argmax(-1) == labels) & valid
    slope = torch.exp(logits.float() - scale)
    hot = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    slope = ((slope - hot.float()) * weights.unsqueeze(-1)).to(logits.dtype)
    return (surprise.squeeze(-1) * weights).sum(), slope @ head, right, q


class _HeadLoss(torch.autograd.Function):
    """Carries the gradient that the chunks already have."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * slopes[0], None, None


class HeadLoss:
    """The loss over a frozen head [V, E], computed in the head's dtype with float32 sums."""

    def __init__(self, head: Tensor, weighting: Weighting, compiled: bool = False) -> None:
        self.head, self.weighting = head, weighting
        self._chunk: Callable[..., Any] = torch.compile(_chunk, dynamic=False) if compiled else _chunk

    def __call__(self, hidden: Tensor, labels: Tensor, valid: Tensor) -> SlotResult:
        """hidden float32 [N, J, E], labels int64 [N, J], valid bool [N, J]."""
        blocks = max(1, CHUNK_ROWS // hidden.shape[1])
        values, gradients, rights, chances = [], [], [], []
        with torch.no_grad():
            rows = hidden.detach().to(self.head.dtype)
            divisor = self.weighting.divisor(valid)
            for first in range(0, len(rows), blocks):
                part = slice(first, first + blocks)
                value, gradient, right, q = self._chunk(
                    rows[part], self.head, labels[part], valid[part], divisor, self.weighting
                )
                values.append(value)
                gradients.append(gradient)
                rights.append(right)
                chances.append(q)
            total = torch.stack(values).sum()
            gradient = torch.cat(gradients).to(hidden.dtype)
        loss: Tensor = _HeadLoss.apply(hidden, total, gradient)  # type: ignore[no-untyped-call]
        return SlotResult(loss, torch.cat(rights), torch.cat(chances))
