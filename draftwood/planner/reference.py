"""The sizes of the system that draftwood is measured against (SPEC-dflash 0.2, 1.6, 4.2; Appendix C). Torch-free.

It keeps a copy of the recurrent state in float16 for every node of a tree, two rings of 4,096 feature rows, the token
table on the host, and weights in the bytes of their file. Its prefill scratch (SPEC-dflash 8, P4) is taken to lie in
the room of the node states, and its driver's context is assumed to be that of a program without torch.
"""

from __future__ import annotations

import math

from draftwood.buffers import total
from draftwood.cache.spec import KVSpec
from draftwood.models.buffers import state_buffers
from draftwood.planner.hardware import MIB
from draftwood.planner.inventory import Target
from draftwood.planner.plan import Setup, Sizes

BUDGET = 22
RING = 4096
CONTEXT_STEP = 256
DRIVER = 400 * MIB

KV = [
    KVSpec("q8_0", (), lambda d: 8.5, 32, ""),
    KVSpec("q4_0", (), lambda d: 4.5, 32, ""),
    KVSpec("tq3_0", (), lambda d: 3.5, 128, ""),
]
"""34,816, 18,432 and 14,336 bytes a token on the 27B."""


def node_state(target: Target) -> int:
    """Bytes of one node's recurrent states in float16."""
    return target.state_bytes // 2


def parts(setup: Setup) -> dict[str, int]:
    """Bytes of a combination by part."""
    spec, draft = setup.target.spec, setup.draft
    context = setup.context + -setup.context % CONTEXT_STEP
    token = sum(spec.attention) * spec.kv_heads * sum(kind.row_bytes(spec.head_dim) for kind in setup.kv)
    taken = {
        "weights": setup.target.file_bytes,
        "kv": token * context,
        "state": total(state_buffers(spec)),
        "node_states": node_state(setup.target) * setup.rows,
        "logits": 4 * spec.vocab * setup.rows,
        "driver": DRIVER,
    }
    if draft is not None:
        ring = math.prod((min(context, RING), len(draft.spec.taps), spec.hidden))
        taken["draft"] = draft.file_bytes
        taken["features"] = 2 * ring + 4 * ring
        taken["logits"] += 4 * spec.vocab * draft.spec.block_size
    return {name: nbytes for name, nbytes in taken.items() if nbytes}


REFERENCE = Sizes("reference", lambda: KV, parts, budget=BUDGET, node_state=node_state)
