"""The gated delta rule with its short convolution (SPEC-qwen35 2.3 and 2.4).

Letters: Hv value heads, Hk key heads, K key width, V value width, F channels of the raw projection (2 Hk K + Hv V),
R nodes of a decode pass, T tokens of a prefill pass (a multiple of GRANULE).
The state is float32 [Hv, K, V]; the window holds the last three raw projections, float32 [3, F]. Value head h reads
key head h mod Hk, the order of GGUF files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftwood.batch import GRANULE
from draftwood.kernels.activation import silu
from draftwood.kernels.norm import l2_norm, rms_norm

TAPS = 4


@dataclass(frozen=True)
class DeltaShape:
    """Sizes of one gated delta net layer."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    eps: float

    @property
    def channels(self) -> int:
        """F, width of the raw projection."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


def convolve(taps: list[Tensor], weight: Tensor) -> Tensor:
    """SiLU of the depthwise convolution; taps: four [N, F], oldest first; weight [4, F]. Sums in tap order."""
    total = taps[0] * weight[0]
    for tap, w in zip(taps[1:], weight[1:], strict=True):
        total = total + tap * w
    return silu(total)


def split_heads(mixed: Tensor, shape: DeltaShape) -> tuple[Tensor, Tensor, Tensor]:
    """[N, F] after the convolution -> q (normalised, over sqrt K) and k (normalised), [N, Hv, K]; v, [N, Hv, V]."""
    width = shape.key_heads * shape.key_dim
    q, k, v = mixed.split([width, width, shape.value_heads * shape.value_dim], -1)
    repeat = shape.value_heads // shape.key_heads
    q = l2_norm(q.unflatten(-1, (-1, shape.key_dim)), shape.eps) * shape.key_dim**-0.5
    k = l2_norm(k.unflatten(-1, (-1, shape.key_dim)), shape.eps)
    return q.repeat(1, repeat, 1), k.repeat(1, repeat, 1), v.unflatten(-1, (-1, shape.value_dim))


def update(state: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """One token's new state: state [Hv, K, V], k [Hv, K], v [Hv, V], decay = exp(g) [Hv], beta [Hv]."""
    decayed = state * decay[:, None, None]
    predicted = (decayed * k[:, :, None]).sum(1)
    correction = (v - predicted) * beta[:, None]
    return decayed + k[:, :, None] * correction[:, None, :]


def read(state: Tensor, q: Tensor) -> Tensor:
    """The state's answer to a query: [Hv, K, V], [Hv, K] -> [Hv, V]."""
    return (state * q[:, :, None]).sum(1)


def path_windows(window: Tensor, raw: Tensor, parents: list[int]) -> list[Tensor]:
    """Every node's four convolution taps, oldest first: [R, F] each (SPEC-dflash 3.5).

    window: [3, F]. raw: [R, F], the nodes' projections. Walking past the root enters the window.
    """
    rows = torch.cat((window, raw), 0)
    index = torch.empty(TAPS, len(parents), dtype=torch.long)
    for node in range(len(parents)):
        at = node
        for tap in range(TAPS - 1, -1, -1):
            index[tap, node] = at + TAPS - 1
            at = parents[at] if at >= 0 else at - 1
    return [rows[i] for i in index.to(rows.device)]


def nodes(
    state: Tensor,
    window: Tensor,
    raw: Tensor,
    decay: Tensor,
    beta: Tensor,
    weight: Tensor,
    shape: DeltaShape,
    parents: list[int],
    order: list[int],
) -> Tensor:
    """Outputs of all nodes of a decode pass, [R, Hv, V]; the state itself is not changed.

    raw [R, F], decay and beta [R, Hv], order: the nodes depth-first. One state per depth is alive at a time.
    """
    q, k, v = split_heads(convolve(path_windows(window, raw, parents), weight), shape)
    out = torch.empty_like(v)
    alive: dict[int, Tensor] = {-1: state}
    last_child = {parents[node]: node for node in order}
    for node in order:
        parent = parents[node]
        after = update(alive[parent], k[node], v[node], decay[node], beta[node])
        out[node] = read(after, q[node])
        if last_child[parent] == node:
            del alive[parent]
        if node in last_child:
            alive[node] = after
    return out


def advance(
    state: Tensor, window: Tensor, raw: Tensor, decay: Tensor, beta: Tensor, weight: Tensor, shape: DeltaShape
) -> tuple[Tensor, Tensor]:
    """State and window after a chain of rows, raw [n, F]: what `nodes` computed along that path, bit for bit."""
    _, k, v = split_heads(convolve(path_windows(window, raw, list(range(-1, len(raw) - 1))), weight), shape)
    for row in range(len(raw)):
        state = update(state, k[row], v[row], decay[row], beta[row])
    return state, torch.cat((window, raw), 0)[-(TAPS - 1) :]


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `draftwood.kernels.delta_rule.GatedNorm`."""
    return rms_norm(x, weight, eps).flatten(1) * silu(z)


def granule(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The chunk-parallel form of one granule (SPEC-qwen35 2.4): outputs [C, Hv, V] and the new state.

    q, k [C, Hv, K], v [C, Hv, V], g (log decay) and beta [C, Hv]; rows past the prompt's end have g = beta = k = 0.
    """
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    total = g.t().cumsum(-1)
    lower = torch.ones(GRANULE, GRANULE, dtype=torch.bool, device=g.device).tril_()
    ratio = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~lower, -torch.inf).exp()
    b = beta.t().unsqueeze(-1)
    interaction = (b * (k @ k.transpose(1, 2)) * ratio).tril(-1)
    right = torch.cat((b * v, b * total.exp().unsqueeze(-1) * k), -1)
    solved = torch.linalg.solve_triangular(interaction, right, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], -1)
    correction = u - w @ state
    out = total.exp().unsqueeze(-1) * (q @ state) + ((q @ k.transpose(1, 2)) * ratio) @ correction
    rest = (total[:, -1:] - total).exp().unsqueeze(-1)
    state = total[:, -1].exp()[:, None, None] * state + (rest * k).transpose(1, 2) @ correction
    return out.transpose(0, 1), state


def granules(
    state: Tensor,
    window: Tensor,
    raw: Tensor,
    g: Tensor,
    beta: Tensor,
    weight: Tensor,
    shape: DeltaShape,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A prefill pass of T rows of which the first `count` are real: outputs [T, Hv, V], the new state and window."""
    rows = torch.cat((window, raw), 0)
    length = len(raw)
    mixed = convolve([rows[tap : tap + length] for tap in range(TAPS)], weight)
    q, k, v = split_heads(mixed, shape)
    live = (torch.arange(length, device=raw.device) < count).unsqueeze(-1)
    g, beta = g * live, beta * live
    k, v = k * live.unsqueeze(-1), v * live.unsqueeze(-1)
    outputs = []
    for first in range(0, length, GRANULE):
        part = slice(first, first + GRANULE)
        out, state = granule(state, q[part], k[part], v[part], g[part], beta[part])
        outputs.append(out)
    return torch.cat(outputs), state, rows[count : count + TAPS - 1].clone()
