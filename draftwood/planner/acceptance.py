"""How many tokens a round is expected to decide, by the candidates it checks: a model, not a measurement.

The shares of drafts that are accepted down to each depth are those of a Qwen3.5-27B DFlash draft in vLLM on GSM8K
(REACHED; FIELD-NOTES 3.1, dflash#52). Two numbers bring them to Qwen3.6-27B: the share at a depth given the one before
is raised to SHARPEN, and of what the first choice misses, each next one catches the share RUNNER_UP. They were fitted
to what others measured on HumanEval (SPEC-dflash 7.4, FIELD-NOTES 3.8): 5.94 tokens at budget 22 on an RTX 3090 (the
model says 5.93), 9.7 % more at budget 36 than at 22 on an RTX 4090 (9.6 %), 4.93 at budget 8 (4.69). Other text is
accepted less: GSM8K gave 0.75 times as many tokens, prose fewer still.
"""

from __future__ import annotations

import heapq
import math
from functools import cache
from itertools import pairwise

REACHED = (0.90, 0.80, 0.73, 0.64, 0.54, 0.48, 0.40, 0.36, 0.34, 0.30, 0.28, 0.28, 0.25, 0.21, 0.17)
SHARPEN = 1.64
RUNNER_UP = 0.5
CANDIDATES = 8
"""Tokens considered at a depth, as `decode.tree` does."""

COARSE = 28 / 43
"""Accepted candidates with a Q4_K_M draft, as a share of those with a Q8_0 one (FIELD-NOTES 2, item 18)."""


def tokens(budget: int, coarse: bool = False) -> float:
    """Tokens that a round of `budget` candidates (0..63) decides on average, the target's own included."""
    return 1 + (COARSE if coarse else 1.0) * (_curve()[budget] - 1)


@cache
def _curve() -> list[float]:
    """Tokens by budget. A tree of n nodes is best made of the n likeliest paths, whose likelihoods add up."""
    first = [math.pow(reached / before, SHARPEN) for before, reached in pairwise((1.0, *REACHED))]

    def chance(depth: int, rank: int) -> float:
        return first[depth] if rank == 0 else (1 - first[depth]) * RUNNER_UP * (1 - RUNNER_UP) ** (rank - 1)

    curve = [1.0]
    waiting = [(-chance(0, 0), 0, 0, 1.0)]
    while len(curve) < 64:
        negative, depth, rank, parent = heapq.heappop(waiting)
        curve.append(curve[-1] - negative)
        if rank + 1 < CANDIDATES:
            heapq.heappush(waiting, (-parent * chance(depth, rank + 1), depth, rank + 1, parent))
        if depth + 1 < len(first):
            heapq.heappush(waiting, (negative * chance(depth + 1, 0), depth + 1, 0, -negative))
    return curve
