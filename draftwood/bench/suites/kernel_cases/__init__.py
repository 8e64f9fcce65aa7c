"""The kernels beside the matrices, at a model's sizes: each with a gate and with calls on distinct inputs."""

from __future__ import annotations

import torch

from draftwood.bench.suites.kernel_cases import attention, delta_rule, operands, tokens, trees
from draftwood.bench.suites.kernel_cases.base import Case, Kernel, Setting, Work
from draftwood.bench.suites.ops import target_of
from draftwood.models.registry import architecture

__all__ = ["Case", "Kernel", "Setting", "Work", "cases", "cases_of"]

BUDGETS = (22, 63)
"""Of the draft trees that are grown and walked."""


def cases(model: str) -> list[Case]:
    """The kernels beside the matrices of a known model."""
    target = target_of(model)
    return cases_of(Setting(architecture(target).read_spec(target)))


def cases_of(setting: Setting) -> list[Case]:
    """Those of a pass, of a round, then of a prompt."""
    spec, delta = setting.spec, setting.delta
    made = [operands.add_norm(setting, inputs) for inputs in (spec.heads * spec.head_dim, spec.ffn)]
    made.append(operands.silu_gate(setting))
    if delta is not None:
        made.append(operands.gated_norm(setting, delta))
    if spec.gated:
        made.append(operands.gate(setting))
    made += [tokens.rotate_heads(setting), tokens.embed(setting)]
    made += [tokens.top_k(setting, dtype) for dtype in (torch.float32, torch.float16)]
    made += [tokens.gumbel(setting, temperature) for temperature in (0.0, 1.0)]
    made += [attention.attend_tree(setting, context) for context in setting.contexts]
    made += [attention.store_rows(setting), attention.commit_rows(setting)]
    if delta is not None:
        made += [make(setting, delta) for make in (delta_rule.stage_nodes, delta_rule.tree_rule)]
        made.append(delta_rule.commit_nodes(setting, delta))
    made += [case for budget in BUDGETS for case in (trees.grow(setting, budget), trees.walk(setting, budget))]
    made += [attention.attend_granules(setting, depth) for depth in setting.depths]
    if delta is not None:
        made.append(delta_rule.prefill(setting, delta))
    return made
