"""Which combination to take: all of them weighed, one picked, and the reason. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from draftwood.batch import GRANULE, MAX_ROWS
from draftwood.cache.registry import check_width
from draftwood.errors import DeviceError
from draftwood.planner.acceptance import COARSE
from draftwood.planner.cost import CostModel
from draftwood.planner.hardware import GIB, Card
from draftwood.planner.inventory import Draft, Target, known_advice
from draftwood.planner.plan import DRAFT_BITS, OURS, KVPair, Plan, Row, Setup, Sizes, smallest_kv
from draftwood.planner.reference import REFERENCE

SIZES: dict[str, Sizes] = {sizes.name: sizes for sizes in (OURS, REFERENCE)}
"""The systems whose memory can be planned."""

FULL_BITS = 8.5
"""From this many bits a value on, a cache is as good as f16: mean KL divergence 1.8e-5 (FIELD-NOTES 3.7)."""

LOW_BITS = 3.0
"""Below this many bits a value the damage shows (FIELD-NOTES 3.7)."""

WORTH_SAYING = GIB

GUIDE_GIB = 24
"""The card that the earlier report's guide is for."""

LONGEST = 1 << 24


@dataclass(frozen=True)
class Question:
    """What a plan is asked for.

    drafts: the choices, None among them being plain decoding. memory: bytes of the card. limit: bytes that may be
    used. context: tokens of prompt and answer. budget: candidates a round, None for the best. kv, draft_kv: types of
    K and V, None for a free choice and the usual ones. layout, table_on_card: before a lever is pulled. rows: of a
    decode pass, None for those that draft and budget ask for.
    """

    target: Target
    drafts: tuple[Draft | None, ...]
    card: Card
    memory: int
    limit: int
    context: int
    sizes: Sizes = OURS
    budget: int | None = None
    kv: KVPair | None = None
    draft_kv: KVPair | None = None
    layout: str = "fast"
    table_on_card: bool = True
    rows: int | None = None


def answer(question: Question) -> Plan:
    """The plan; a DeviceError says the longest context that fits where this one does not."""
    rows = weigh(question)
    best = _fitting(question, rows)
    return Plan(
        question.target,
        question.card,
        question.memory,
        question.limit,
        question.context,
        question.sizes,
        tuple(rows),
        best,
        _why(best, rows),
        _lever_bytes(question, best),
        tuple(_remarks(question, best, rows)),
    )


def fitting(question: Question) -> Row:
    """The row to take; a DeviceError as in `answer`."""
    return _fitting(question, weigh(question))


def _fitting(question: Question, rows: list[Row]) -> Row:
    found = [row for row in rows if row.fits]
    if not found:
        raise _too_long(question, rows)
    return pick(found)


def roomiest(question: Question) -> Row:
    """The row to take where the context is to be as long as it can, up to the question's.

    The pick where that fits, else the KV type of at least LOW_BITS that reaches furthest (any, if the question names
    one); a DeviceError where nothing fits.
    """
    rows = weigh(question)
    found = [row for row in rows if row.fits]
    if found:
        return pick(found)
    sound = [row for row in rows if _fewest_bits(row) >= LOW_BITS] or rows
    best = max(sound, key=lambda row: row.longest)
    if not best.longest:
        raise _too_long(question, rows)
    return best


def weigh(question: Question) -> list[Row]:
    """A row for each pair of KV types and each draft, most bits first."""
    width = question.target.spec.head_dim
    pairs = [(kind, kind) for kind in question.sizes.kv_types() if width % kind.head_multiple == 0]
    if question.kv is not None:
        check_width(question.kv, width)
        pairs = [question.kv]
    pairs.sort(key=lambda pair: -sum(kind.bits(width) for kind in pair))
    return [_row(question, pair, draft) for pair in pairs for draft in question.drafts]


def _row(question: Question, kv: KVPair, draft: Draft | None) -> Row:
    sizes, context = question.sizes, question.context
    roomy = _roomy(question, kv, draft)
    setup, pulled = _fit(question, roomy)
    cost = CostModel(question.card, question.target, draft, kv, setup.draft_kv, sizes.node_state(question.target))
    fixed = _fixed_budget(question)
    budget = 0 if draft is None else cost.best_budget(context) if fixed is None else fixed
    taken = sizes.parts(setup)
    return Row(
        kv,
        draft,
        setup.draft_kv,
        sum(taken.values()) <= question.limit,
        taken,
        pulled,
        budget,
        cost.step(budget + 1, context),
        cost.round(budget, context),
        cost.tokens(budget),
        _longest(question, roomy),
        cost,
    )


def _fixed_budget(question: Question) -> int | None:
    return question.sizes.budget if question.budget is None else question.budget


def _roomy(question: Question, kv: KVPair, draft: Draft | None) -> Setup:
    """A combination with no lever pulled, with rows for every budget that may be used."""
    fixed = _fixed_budget(question)
    rows = 1 if draft is None else MAX_ROWS if fixed is None else fixed + 1
    return Setup(
        question.target,
        draft,
        kv,
        question.draft_kv or _usual_draft_kv(draft),
        question.context,
        rows=question.rows or rows,
        layout=question.layout,
        table_on_card=question.table_on_card,
        draft_kv_is_free=question.draft_kv is None,
    )


def _usual_draft_kv(draft: Draft | None) -> KVPair:
    """The type of the draft's own cache; without a draft any will do."""
    return smallest_kv(DRAFT_BITS, GRANULE if draft is None else draft.spec.head_dim)


def _taken(question: Question, setup: Setup) -> int:
    return sum(question.sizes.parts(setup).values())


def _fit(question: Question, setup: Setup) -> tuple[Setup, tuple[str, ...]]:
    """The combination with as many levers pulled as it takes to fit, or all of them, and their names."""
    pulled: list[str] = []
    taken = _taken(question, setup)
    for lever in question.sizes.levers:
        if taken <= question.limit:
            break
        after = lever.pull(setup)
        smaller = _taken(question, after)
        if smaller < taken:
            setup, taken = after, smaller
            pulled.append(lever.name)
    return setup, tuple(pulled)


def _tightest(question: Question, setup: Setup) -> Setup:
    """The combination with every lever pulled."""
    for lever in question.sizes.levers:
        setup = lever.pull(setup)
    return setup


def _longest(question: Question, setup: Setup) -> int:
    """The longest context, in whole granules, that fits with every lever pulled; 0 where none does."""
    setup = _tightest(question, setup)
    fits, too_long = 0, LONGEST // GRANULE + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _taken(question, dataclasses.replace(setup, context=middle * GRANULE)) <= question.limit:
            fits = middle
        else:
            too_long = middle
    return fits * GRANULE


def quality(row: Row) -> float:
    """Bits of a K and a V value together, as far as more of them show in the answer."""
    width = row.cost.target.spec.head_dim
    return sum(min(kind.bits(width), FULL_BITS) for kind in row.kv)


def pick(rows: list[Row]) -> Row:
    """Of rows that fit, the fastest draft with the KV type that keeps the context best beside it; of equally good types
    the smallest.

    Bits are never traded for speed, and types below LOW_BITS are taken only where nothing else fits.
    """
    sound = [row for row in rows if _fewest_bits(row) >= LOW_BITS] or rows
    best: dict[str, Row] = {}
    for row in sorted(sound, key=lambda row: (quality(row), -_bits(row))):
        best[row.draft_name] = row
    return max(best.values(), key=lambda row: row.speed)


def _fewest_bits(row: Row) -> float:
    width = row.cost.target.spec.head_dim
    return min(kind.bits(width) for kind in row.kv)


def _why(best: Row, rows: list[Row]) -> str:
    """One or two sentences: what the pick is preferred for, and what stands in the way of the next better one."""
    better = [row for row in rows if row.draft is best.draft and quality(row) > quality(best)]
    if better:
        nearest = min(better, key=_bits)
        said = f"{best.kv_short} keeps the most bits that fit ({nearest.kv_short} takes {nearest.total / GIB:.2f} GiB)"
    elif quality(best) == 2 * FULL_BITS:
        said = f"{best.kv_short} keeps the context as well as f16"
    else:
        said = f"{best.kv_short} is the best of the types to choose from"
    others = [row for row in rows if row.fits and row.draft is not best.draft]
    if others:
        other = pick(others)
        draft = "no draft" if other.draft is None else f"the {other.draft_name} draft"
        slower = _percent(max(1 - other.speed / best.speed, 0))
        said += f"; {draft if other.kv == best.kv else f'{other.kv_short} with {draft}'} is {slower} slower"
        if best.draft is not None and other.draft is not None and other.draft.coarse and not best.draft.coarse:
            said += f" (others saw {_percent(1 - COARSE)} fewer guesses accepted)"
    return said + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _lever_bytes(question: Question, best: Row) -> dict[str, int]:
    """What each lever frees on the pick, pulled or not."""
    setup = _roomy(question, best.kv, best.draft)
    taken = _taken(question, setup)
    freed = {lever.name: taken - _taken(question, lever.pull(setup)) for lever in question.sizes.levers}
    return {name: size for name, size in freed.items() if size}


def _remarks(question: Question, best: Row, rows: list[Row]) -> Iterator[str]:
    spec = question.target.spec
    if question.context > spec.context_length:
        yield f"the model was made for {spec.context_length:,} tokens, fewer than asked for"
    if _fewest_bits(best) < LOW_BITS:
        yield "at two bits a value others measured 6.5 % more perplexity; a shorter context has room for a better type"
    if best.draft is not None and best.budget == 0:
        yield "drafting does not pay here: plain decoding is predicted to be faster"
    yield from _advice(question, best, rows)
    half = [row for row in rows if row.draft is best.draft and 2 * _bits(row) <= _bits(best)]
    half = [row for row in half if _fewest_bits(row) >= LOW_BITS]
    if half:
        smaller = max(half, key=quality)
        freed = best.parts["kv"] - smaller.parts["kv"]
        if freed >= WORTH_SAYING:
            yield f"{smaller.kv_short} would take {freed / GIB:.2f} GiB less"


def _bits(row: Row) -> float:
    width = row.cost.target.spec.head_dim
    return sum(kind.bits(width) for kind in row.kv)


def _advice(question: Question, best: Row, rows: list[Row]) -> Iterator[str]:
    """Where an earlier report's guide for a 24 GiB card says something else than the bytes."""
    if question.target.key is None or round(question.memory / GIB) != GUIDE_GIB:
        return
    found = {(row.kv_short, row.draft_name): row for row in rows}
    for advice in known_advice(question.target.key):
        if not advice.least <= question.context <= advice.most:
            continue
        for pair in advice.refused:
            if pair in found and found[pair].fits:
                yield (
                    f"an older guide says that {_pair(pair)} does not fit {advice.use}, but its own sweep ran it; "
                    f"by bytes it takes {found[pair].total / GIB:.2f} GiB and fits"
                )
        if advice.pairs and (best.kv_short, best.draft_name) not in advice.pairs:
            said = " or ".join(map(_pair, advice.pairs))
            mine = _pair((best.kv_short, best.draft_name))
            yield f"an older guide: {said} for {advice.use}; {mine} fits too"


def _pair(pair: tuple[str, str]) -> str:
    return f"{pair[0]} + {pair[1]}"


def sweep(question: Question, kv: KVPair, draft: Draft | None, contexts: list[int]) -> list[int]:
    """Bytes by context with every lever pulled: the least that the combination takes."""
    setup = _tightest(question, _roomy(question, kv, draft))
    return [_taken(question, dataclasses.replace(setup, context=context)) for context in contexts]


def _too_long(question: Question, rows: list[Row]) -> DeviceError:
    """The error about a context that fits with no combination."""
    name, memory = question.target.name, f"{question.limit / GIB:.2f} usable of {question.memory / GIB:.2f} GiB"
    longest = max(rows, key=lambda row: row.longest)
    if not longest.longest:
        fixed = longest.total - sum(longest.parts.get(part, 0) for part in ("kv", "draft_kv"))
        return DeviceError(
            f"{name} does not fit into {memory}: without any context it takes {fixed / GIB:.2f} GiB; "
            "take a model or a quantisation with fewer bytes, or a card with more memory."
        )
    draft = "" if longest.draft is None else f" and the {longest.draft_name} draft"
    return DeviceError(
        f"{name} with {question.context:,} tokens does not fit into {memory}: the longest context that does is "
        f"{longest.longest:,}, with KV type {longest.kv_short}{draft}; ask for a shorter context, "
        "or for a card with more memory."
    )
