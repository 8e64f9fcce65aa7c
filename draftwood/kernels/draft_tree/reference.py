"""Growing a draft tree and walking it, in tensor operations of fixed sizes that read nothing on the host."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from draftwood.kernels.draft_tree import CAPACITY, HEADER, TURN, Assumed, Grown, Growth, Walked

Nodes = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""tokens, parents, depth, count and expected of `Grown`."""


def grow(
    pending: Tensor,
    tokens: Tensor,
    log_probs: Tensor,
    committed: Tensor,
    growth: Growth,
    normaliser: Tensor | None = None,
) -> Grown:
    """See `draftwood.kernels.draft_tree.Grow`."""
    if normaliser is not None:
        log_probs = log_probs - normaliser[:, None]
    token, parents, depth, count, expected = select_nodes(pending, tokens, log_probs, growth)
    paths = ancestors(parents, depth, count, CAPACITY - 1)
    return Grown(
        tokens=token,
        parents=parents,
        depth=depth,
        count=count,
        expected=expected,
        positions=committed + depth,
        ancestors=paths.to(torch.int32),
        order=depth_first(paths).to(torch.int32),
    )


def select_nodes(pending: Tensor, tokens: Tensor, log_probs: Tensor, growth: Growth) -> Nodes:
    """The nodes that `grow` chooses."""
    depths, width = min(tokens.shape[0], growth.depth), min(tokens.shape[1], growth.candidates)
    tokens = tokens[:depths, :width]
    if not tokens.numel():
        nothing = torch.zeros(0, dtype=torch.int64, device=tokens.device)
        return assemble(pending, nothing, nothing, nothing, nothing.bool(), nothing)
    # At most 0: no node scores more than its parent, even where a log-probability was rounded to above 0.
    log_probs = torch.nan_to_num(log_probs[:depths, :width], nan=-torch.inf, neginf=-torch.inf).clamp(max=0.0)
    return _chain(pending, tokens, log_probs, growth) if width == 1 else _best_first(pending, tokens, log_probs, growth)


def assemble(pending: Tensor, tokens: Tensor, parents: Tensor, depth: Tensor, alive: Tensor, scores: Tensor) -> Nodes:
    """A tree of the root and `n` further nodes (int64 [n], bool [n], scores float32 [n]), the living ones first."""
    columns = torch.zeros(3, CAPACITY, dtype=torch.int64, device=tokens.device)
    columns[1].fill_(-1)
    columns[0, :1] = pending
    places = columns[:, 1 : 1 + tokens.shape[0]]
    places.copy_(torch.where(alive, torch.stack((tokens, parents, depth)), places))
    expected = (scores.exp() * alive).sum(dtype=torch.float64)
    return columns[0], columns[1], columns[2], 1 + alive.sum(), expected


def _chain(pending: Tensor, tokens: Tensor, log_probs: Tensor, growth: Growth) -> Nodes:
    """`_best_first` with one candidate per depth: down to the budget or the first impossible or too unlikely path."""
    length = min(len(tokens), growth.budget)
    depth = torch.arange(1, length + 1, device=tokens.device)
    scores = torch.stack(list(accumulate(log_probs[:length, 0].unbind())))
    alive = (scores > -torch.inf) & (scores >= growth.lowest)
    return assemble(pending, tokens[:length, 0], depth - 1, depth, alive, scores)


def _best_first(pending: Tensor, tokens: Tensor, log_probs: Tensor, growth: Growth) -> Nodes:
    """The likeliest `budget` nodes (DDTree; SPEC-dflash 3.3 walks the same order with a heap), after the chain seed.

    Level by level: no tree of `budget` nodes holds more than the best `budget` candidates of a depth, so each
    level keeps these.  Sorting is stable and levels are joined in order of depth, so a parent comes before
    its child even where their scores are equal, and the best nodes, however many, include their parents.  The
    first node of a level is the child of the first node of the level above: these are the greedy chain.
    """
    depths, width = tokens.shape
    budget, device = growth.budget, tokens.device
    seed = min(depths, growth.seed)

    scores = torch.zeros(1, dtype=torch.float32, device=device)
    level_scores, level_tokens, level_parents, level_seeded = [], [], [], []
    starts = [-1, 0]
    for level in range(depths):
        candidates = (scores[:, None] + log_probs[level]).reshape(-1)
        kept = min(budget, candidates.shape[0])
        ranked, order = candidates.sort(descending=True, stable=True)
        scores, order = ranked[:kept], order[:kept]
        if growth.lowest > -math.inf:
            scores = scores.where(scores >= growth.lowest, -torch.inf)
        level_scores.append(scores)
        level_seeded.append(torch.arange(kept, device=device) < (1 if level < seed else 0))
        level_tokens.append(tokens[level, order % width])
        level_parents.append(starts[level] + order // width)
        starts.append(starts[-1] + kept)

    depth = torch.cat(
        [
            torch.full((stop - start,), level + 1, dtype=torch.int64, device=device)
            for level, (start, stop) in enumerate(pairwise(starts[1:]))
        ]
    )
    score, token, parent = torch.cat(level_scores), torch.cat(level_tokens), torch.cat(level_parents)
    priority = torch.where(torch.cat(level_seeded) & (score > -torch.inf), torch.inf, score)
    total = priority.shape[0]
    size = min(budget, total)
    ranked, chosen = priority.sort(descending=True, stable=True)
    # Impossible candidates move past the end; the others return to the order of depth, then score.
    chosen = torch.where(ranked[:size] > -torch.inf, chosen[:size], total).sort().values
    alive = chosen < total
    index = torch.arange(1, size + 1, device=device)
    # The extra places serve dead slots (total) and the root, whose -1 lands on the last place.
    node_of = torch.zeros(total + 2, dtype=torch.int64, device=device).scatter(0, chosen, index)
    chosen = chosen.clamp(max=total - 1)
    parents = node_of[parent[chosen].where(parent[chosen] >= 0, total + 1)]
    return assemble(pending, token[chosen], parents, depth[chosen], alive, score[chosen])


def ancestors(parents: Tensor, depth: Tensor, count: Tensor, max_depth: int) -> Tensor:
    """For each node its path from the root: int64 [64, max_depth + 1].

    Row i, column d is the index of node i's ancestor at depth d, i itself at its own depth, -1 beyond; rows
    of unused slots are all -1.  `max_depth` is at least the depth of the deepest node.
    """
    capacity, device = parents.shape[0], parents.device
    # Column s of `up` is the ancestor s steps up; turns double them.  Row `capacity` is "above the root".
    up = torch.arange(capacity + 1, device=device)[:, None]
    jump = torch.nn.functional.pad(parents.where(parents >= 0, capacity), (0, 1), value=capacity)
    while up.shape[1] <= max_depth:
        up = torch.cat([up, up[jump]], dim=1)
        jump = jump[jump]
    steps = depth[:, None] - torch.arange(max_depth + 1, device=device)
    used = torch.arange(capacity, device=device) < count
    found = up[:capacity].gather(1, steps.clamp(0, up.shape[1] - 1))
    return torch.where((steps >= 0) & used[:, None], found, -1)


def depth_first(paths: Tensor) -> Tensor:
    """The slots in depth-first order, from their `ancestors`: int64 [64]. It is the order of the paths as words."""
    slots = torch.arange(paths.shape[0], device=paths.device)
    paths = paths.clone()
    paths[:, 0] = slots.where(paths[:, 0] < 0, 0)
    difference = paths[:, None] - paths[None]
    first = (difference != 0).int().argmax(-1, keepdim=True)
    return (difference.gather(-1, first) > 0).sum((1, 2)).argsort()


def accept(
    tokens: Tensor, parents: Tensor, depth: Tensor, count: Tensor, target: Tensor, at_most: int = CAPACITY
) -> tuple[Tensor, Tensor, Tensor]:
    """path, count and next_token of `Walked`, for a tree of `at_most` nodes or fewer."""
    capacity = tokens.shape[0]
    if at_most == 1:
        alone = torch.full((capacity,), -1, dtype=torch.int64, device=tokens.device)
        alone[:1] = 0
        return alone, count, target[0]
    nodes = torch.arange(capacity, device=tokens.device)
    parents = parents.clamp(min=0)
    accepted = (nodes < count) & ((nodes == 0) | (tokens == target[parents]))
    # Each turn doubles the number of ancestors a node has asked; the root is its own parent.
    for _ in range((at_most - 1).bit_length()):
        accepted = accepted & accepted[parents]
        parents = parents[parents]

    # One place more than the capacity takes the nodes that are not on the path.
    place = torch.where(accepted, depth, capacity)
    path = torch.full((capacity + 1,), -1, dtype=torch.int64, device=nodes.device)
    path = path.scatter(0, place, nodes)[:capacity]
    kept = accepted.sum()
    # gather, since indexing with a tensor of no dimensions reads it on the host
    last = path.gather(0, (kept - 1).reshape(1))
    return path, kept, target.gather(0, last).reshape(())


def assumed_length(assumed: Assumed) -> Tensor:
    """Nodes that a round keeps, int64 [1], before it is known how many there are; advances the counter."""
    whole = assumed.mean.floor()
    step = ((assumed.mean - whole) * TURN).to(torch.int64)
    # Modulo TURN first, so that the product is below 2^60.
    place = ((assumed.counter & (TURN - 1)) * step + TURN // 2) & (TURN - 1)
    assumed.counter.add_(1)
    return whole.to(torch.int64) + (place + step >= TURN)


def _first_children(parents: Tensor, count: Tensor) -> Tensor:
    """bool [64, 64]: whether column j is the first child of row i."""
    nodes = torch.arange(parents.shape[0], device=parents.device)
    child = (parents[None] == nodes[:, None]) & (nodes < count)
    return child & (child.cumsum(1) == 1)


def walk(
    tokens: Tensor,
    parents: Tensor,
    depth: Tensor,
    count: Tensor,
    target: Tensor,
    committed: Tensor,
    pending: Tensor,
    text: Tensor,
    assumed: Assumed | None = None,
) -> Walked:
    """See `draftwood.kernels.draft_tree.Walk`."""
    if assumed is None:
        path, kept, following = accept(tokens, parents, depth, count, target)
    else:
        # The greedy chain is what a target that always draws the first child's token would accept.
        first = _first_children(parents, count)
        spine, length, _ = accept(tokens, parents, depth, count, torch.where(first, tokens, -1).amax(1))
        kept = torch.minimum(assumed_length(assumed).clamp(min=1), length).reshape(())
        slots = torch.arange(CAPACITY, device=spine.device)
        path = spine.where(slots < kept, -1)
        following = target.gather(0, path.gather(0, (kept - 1).reshape(1))).reshape(())
    on_path = tokens[path.clamp(min=0)].where(path >= 0, -1)
    places = committed + torch.arange(CAPACITY, device=path.device)
    text[places] = on_path.where(path >= 0, text[places])
    committed += kept
    pending.copy_(following)
    deepest = torch.where(torch.arange(CAPACITY, device=path.device) < count, depth, 0).amax()
    row = torch.cat((torch.stack((kept, deepest, following, count)), on_path))
    return Walked(path, row[0], row[2], row[HEADER:], row)
