"""Position-keyed sampling (DESIGN law 1): a token's randomness depends on where it stands, not on who asks.

The token at absolute position p is argmax over tokens of (logit / T + Gumbel noise), and the noise is a hash
of (seed, p, token id).  By the Gumbel-max theorem the token follows softmax(logits / T), so plain decoding,
a chain and a tree draw the same token at the same place.

Whatever narrows the set works in integers (ordered bit patterns, fixed-point probabilities), whose sums have
no rounding: a row's result cannot depend on how many rows there are or on the order of additions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from draftwood.decode.params import SamplingParams
from draftwood.kernels.gumbel import LOWEST_TEMPERATURE, load_gumbel_argmax, log_exponential_noise, token_keys

# Rows drawn at a time on an accelerator; bounds the scratch.
ROWS_AT_A_TIME = 64
# One as a fixed-point probability: 2**22 tokens of probability one still fit in int64.
ONE = 2**40
# Radix digits of a 32-bit order key, from the top: (shift, bits).
DIGITS = ((20, 12), (10, 10), (0, 10))


def _order_keys(values: Tensor) -> Tensor:
    """int32 keys (bits of an unsigned number) that ascend as float32 values descend."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one zero of the two
    return torch.where(bits < 0, bits, bits ^ 0x7FFFFFFF)


def _best_until(values: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """The largest values of each row that together weigh at least `target`, as few as possible: bool [R, V].

    values   float32 [R, V]
    weights  int64 [R, V], >= 0, equal for equal values
    target   int64 [R, 1], at least 1 and at most the row's total
    Of equal values the ones with lower ids come first.  A radix search: no sort, and integer sums only.
    """
    keys = _order_keys(values)
    inside = torch.ones_like(keys, dtype=torch.bool)
    before = torch.zeros_like(keys, dtype=torch.bool)
    missing = target
    for shift, bits in DIGITS:
        digits = ((keys >> shift) & ((1 << bits) - 1)).to(torch.int64)
        histogram = torch.zeros(keys.shape[0], 1 << bits, dtype=torch.int64, device=keys.device)
        histogram.scatter_add_(1, digits, weights * inside)
        reached = histogram.cumsum(1)
        digit = (reached < missing).sum(1, keepdim=True)
        missing = missing - (reached - histogram).gather(1, digit)
        before |= inside & (digits < digit)
        inside &= digits == digit
    # What is left inside is one value: its tokens are taken by id until nothing is missing.
    taken = (weights * inside).cumsum(1) - weights
    return before | (inside & (taken < missing))


def top_k_set(values: Tensor, k: int) -> Tensor:
    """The k (1..V) largest of float32 [R, V] in each row, lower ids first among equals: bool [R, V]."""
    target = torch.full((values.shape[0], 1), k, dtype=torch.int64, device=values.device)
    return _best_until(values, torch.ones_like(values, dtype=torch.int64), target)


def top_p_set(values: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens with softmax(values) summing to at least p, in (0, 1]: bool [R, V].

    values are float32 [R, V]; -inf marks a token that is out already.  Probabilities are float32-precise.
    """
    best = values.amax(1, keepdim=True)
    weights = (values - best).exp_().to(torch.float64).mul_(ONE).round_().to(torch.int64)
    total = weights.sum(1, keepdim=True)
    target = (total.to(torch.float64) * p).ceil().to(torch.int64).clamp(min=1)
    return _best_until(values, weights, torch.minimum(target, total))


def min_p_set(values: Tensor, p: float) -> Tensor:
    """Tokens at least `p` (in (0, 1]) times as likely as the likeliest, for float32 [R, V]: bool [R, V]."""
    return values >= values.amax(1, keepdim=True) + math.log(p)


class KeyedDraw:
    """The draws of requests that ask for nothing but a temperature and a seed, which lie on the device.

    One serves request after request, so that rounds captured in a graph may read from it.
    """

    penalised = False

    def __init__(self, device: str) -> None:
        self._seed = torch.zeros(1, dtype=torch.int64, device=device)
        self._temperature = torch.zeros(1, dtype=torch.float32, device=device)
        self._draw = load_gumbel_argmax(device)

    @staticmethod
    def serves(params: SamplingParams) -> bool:
        """Whether nothing else is asked for."""
        return not params.penalised and not params.top_k and params.top_p == 1 and params.min_p == 0

    def begin(self, params: SamplingParams) -> None:
        """Draw for this request from now on."""
        self._seed.fill_(params.seed - (1 << 64) if params.seed >> 63 else params.seed)
        self._temperature.fill_(params.temperature)

    def draw(self, logits: Tensor, positions: Tensor, path_tokens: Tensor) -> Tensor:
        """See Sampler."""
        return self._draw(logits, positions, self._seed, self._temperature)

    def commit(self, tokens: Tensor) -> None:
        """Nothing is counted."""


class Sampler:
    """Draws the target's own tokens for one request and counts the text for the penalties.

    params      what the request asked for
    vocab_size  columns V of the logits
    device      where logits come from
    prompt      int64 [T], the ids of the prompt; they count for the repetition penalty only
    """

    def __init__(self, params: SamplingParams, vocab_size: int, device: torch.device | str, prompt: Tensor) -> None:
        self._params = params
        self._device = torch.device(device)
        if not params.greedy:
            self._keys = token_keys(params.seed, vocab_size, self._device)
        if params.penalised:
            self._generated = torch.zeros(1, vocab_size, dtype=torch.int32, device=self._device)
            self._in_prompt = _counted(torch.zeros_like(self._generated), prompt[None].to(self._device)) > 0
        # A CPU library may compute the end of an array, or a thread's share of it, by other code; alone in
        # its array, a row is always computed alike.
        self._rows = 1 if self._device.type == "cpu" else ROWS_AT_A_TIME

    @property
    def penalised(self) -> bool:
        """Whether `draw` looks at `path_tokens`."""
        return self._params.penalised

    def draw(self, logits: Tensor, positions: Tensor, path_tokens: Tensor) -> Tensor:
        """The target's own token for each row: int64 [R].  No value is read on the host.

        logits       float32 [R, V]
        positions    int64 [R], the absolute position of the token that is drawn
        path_tokens  int64 [R, P], the tokens of the row's node and its ancestors (the pending token among
                     them) that `commit` has not counted yet, padded with -1; P may be 0

        Penalties, then temperature, top_k, top_p and min_p.  Temperature 0 takes the likeliest token.  Among
        equals the lowest id wins.
        """
        if self._params.greedy and not self._params.penalised:
            return logits.argmax(1)
        drawn = [
            self._draw(logits[start:stop], positions[start:stop], path_tokens[start:stop])
            for start in range(0, logits.shape[0], self._rows)
            for stop in (start + self._rows,)
        ]
        return torch.cat(drawn) if drawn else positions.new_empty(0)

    def commit(self, tokens: Tensor) -> None:
        """Count generated tokens (int64 [n], -1 is skipped) for every later draw."""
        if self._params.penalised:
            self._generated = _counted(self._generated, tokens[None])

    def _draw(self, logits: Tensor, positions: Tensor, path_tokens: Tensor) -> Tensor:
        params = self._params
        if params.penalised:
            logits = self._penalise(logits, path_tokens)
        if params.greedy:
            return logits.argmax(1)
        values = logits / max(params.temperature, LOWEST_TEMPERATURE)
        if 0 < params.top_k < values.shape[1]:
            values = values.masked_fill(~top_k_set(values, params.top_k), -torch.inf)
        if params.top_p < 1:
            values = values.masked_fill(~top_p_set(values, params.top_p), -torch.inf)
        if params.min_p > 0:
            values = values.masked_fill(~min_p_set(values, params.min_p), -torch.inf)
        return (values - log_exponential_noise(self._keys, params.seed, positions)).argmax(1)

    def _penalise(self, logits: Tensor, path_tokens: Tensor) -> Tensor:
        """Repetition penalty over prompt and output as in CTRL (Keskar et al., 2019); the other two as in
        OpenAI's API, over the output only.  Counts are whole numbers, so it is all one whether a token was
        committed or lies on the path.
        """
        params = self._params
        counts = _counted(self._generated, path_tokens)
        written = counts > 0
        if params.repetition_penalty != 1:
            penalty = params.repetition_penalty
            weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(written | self._in_prompt, weakened, logits)
        return logits - params.frequency_penalty * counts - params.presence_penalty * written


def _counted(counts: Tensor, tokens: Tensor) -> Tensor:
    """`counts` (int32 [1, V]) plus each row of `tokens` (int64 [R, n], -1 skipped): int32 [R, V]."""
    rows = counts.expand(tokens.shape[0], -1).clone()
    return rows.scatter_add_(1, tokens.clamp(min=0), (tokens >= 0).to(torch.int32))
