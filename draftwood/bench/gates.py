"""What must hold before a speed is worth showing.

- Every method gives the same token ids, each time it runs. Otherwise the gate is red and no speed is shown.
- The KV type that others are compared with does not differ from itself, by the least bit.
- An answer that has degenerated into repetition is flagged wherever its numbers appear: repetition is easy to
  draft, so it makes acceptance look better than it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from draftwood.errors import DraftwoodError

JUDGED_TOKENS = 256
SHORTEST_JUDGED = 16
MOST_COMMON_SHARE = 0.40
DISTINCT_SHARE = 0.30


def degenerate(token_ids: Sequence[int]) -> bool:
    """True if one token is more than 40 % of the first 256 ids, or fewer than 30 % of them are distinct.

    Answers under 16 tokens are too short to be judged: False.
    """
    judged = token_ids[:JUDGED_TOKENS]
    if len(judged) < SHORTEST_JUDGED:
        return False
    counts = Counter(judged)
    most_common = max(counts.values()) / len(judged)
    return most_common > MOST_COMMON_SHARE or len(counts) / len(judged) < DISTINCT_SHARE


def difference(expected: Sequence[int], found: Sequence[int]) -> str | None:
    """None if both are the same ids, else where they part, in a few words."""
    if list(expected) == list(found):
        return None
    for index, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return f"token {index} is {other} instead of {one}"
    return f"{len(found)} tokens instead of {len(expected)}"


def require_identical(differences: Sequence[str]) -> None:
    """The gate: a DraftwoodError with the first of `differences` unless there is none."""
    if differences:
        raise DraftwoodError(
            f"the methods' tokens differ in {len(differences)} runs ({differences[0]}), so no speed is "
            "shown; please report the lines above, exact output is draftwood's first promise."
        )


def require_no_divergence(name: str, worst: float) -> None:
    """The gate of comparisons with KV type `name`: a DraftwoodError unless it diverges from itself by 0 nats."""
    if worst != 0:
        raise DraftwoodError(
            f"reading the same text twice over KV type {name} gave odds {worst:.1e} nats apart, so no figure is shown; "
            "two readings must give the same bits, please report this."
        )
