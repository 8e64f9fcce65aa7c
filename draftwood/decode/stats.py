"""What a generation reports about itself (DESIGN section 8).  Free of torch.

A token is emitted when it is decided: the first one by prefill, the others by rounds.  Every round counts,
also the one that holds the stop token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ASSUMED = "acceptance assumed, not measured"
"""What stands beside every acceptance that was given instead of found."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one generation.

    method               ar, chain or tree
    budget               candidate nodes a round may propose, the root not counted; 0 for plain decoding
    prompt_tokens        ids in the prompt
    emitted              ids in the output, the first one (of prefill) included
    rounds               propose-verify-accept-commit rounds
    prefill_seconds      reading the prompt, up to the first token
    decode_seconds       all rounds
    acceptance_by_depth  entry d - 1: of the rounds that proposed depth d, the share that accepted it
    nodes                candidate nodes proposed in all rounds together
    block_size           slots of the draft's block, the root's included; None for a drafter without blocks
    reason               why `auto` chose this method; empty if the caller did
    assumed              mean tokens a round that the rounds were told to decide; None where the target decided
    """

    method: str
    budget: int
    prompt_tokens: int
    emitted: int
    rounds: int
    prefill_seconds: float
    decode_seconds: float
    acceptance_by_depth: tuple[float, ...] = ()
    nodes: int = 0
    block_size: int | None = None
    reason: str = ""
    assumed: float | None = None

    @property
    def deepest(self) -> int:
        """The deepest depth that any round proposed; 0 without drafting."""
        return len(self.acceptance_by_depth)

    @property
    def acceptance_length(self) -> float:
        """Tokens that a round decides on average, the root's successor included; 0.0 before any round."""
        return (self.emitted - 1) / self.rounds if self.rounds else 0.0

    @property
    def slots(self) -> int:
        """Tokens that the rounds could have decided at most: rounds * block size, or without a block
        rounds * (deepest + 1); 0 without drafting.
        """
        return self.rounds * (self.block_size or self.deepest + 1) if self.deepest else 0

    @property
    def accept_percent(self) -> float | None:
        """Decided tokens in percent of `slots`; None without drafting."""
        return 100 * (self.emitted - 1) / self.slots if self.slots else None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read per second; 0.0 if no time passed."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens decided by rounds (so without the first) per decode second; 0.0 if no time passed."""
        return max(self.emitted - 1, 0) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def summary_lines(self) -> list[str]:
        """The two lines of SPEC-dflash 2.7 with these definitions; only the first without drafting. What was assumed
        is called so."""
        lines = [
            f"[dflash] generated {self.emitted} tokens in {self.decode_seconds:.3f} s"
            f"  ->  {self.decode_tokens_per_second:.2f} tok/s"
        ]
        if self.accept_percent is not None:
            lines.append(
                f"[dflash] {self.rounds} draft steps, accepted={self.emitted - 1}/{self.slots} "
                f"({self.accept_percent:.1f}% per step), avg commit/step={self.acceptance_length:.2f}"
                + ("" if self.assumed is None else f" ({ASSUMED})")
            )
        return lines


@dataclass(slots=True)
class StatisticsRecorder:
    """Collects the rounds of one generation."""

    method: str
    budget: int
    prompt_tokens: int
    block_size: int | None = None
    reason: str = ""
    assumed: float | None = None
    rounds: int = 0
    nodes: int = 0
    _proposed: list[int] = field(default_factory=list)
    _accepted: list[int] = field(default_factory=list)

    def record_round(self, accepted_count: int, proposed_depth: int, nodes: int) -> None:
        """Count one round.

        accepted_count  candidate nodes accepted, without the root (`Accepted.count` - 1)
        proposed_depth  depth of the deepest candidate; 0 if there was none
        nodes           candidate nodes, without the root
        """
        self.rounds += 1
        self.nodes += nodes
        missing = proposed_depth - len(self._proposed)
        if missing > 0:
            self._proposed += [0] * missing
            self._accepted += [0] * missing
        for depth in range(proposed_depth):
            self._proposed[depth] += 1
            self._accepted[depth] += depth < accepted_count

    def finish(self, emitted: int, prefill_seconds: float, decode_seconds: float) -> Statistics:
        """The figures so far; `emitted` is what the caller kept after stop ids and max_tokens."""
        counts = zip(self._accepted, self._proposed, strict=True)
        return Statistics(
            method=self.method,
            budget=self.budget,
            prompt_tokens=self.prompt_tokens,
            emitted=emitted,
            rounds=self.rounds,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            acceptance_by_depth=tuple(accepted / proposed for accepted, proposed in counts),
            nodes=self.nodes,
            block_size=self.block_size,
            reason=self.reason,
            assumed=self.assumed,
        )
