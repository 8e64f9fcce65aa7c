"""The gated delta rule."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from draftwood.batch import MAX_ROWS
from draftwood.bench.suites.kernel_cases.base import (
    FLOATS,
    Case,
    Kernel,
    Setting,
    Work,
    beyond,
    distance,
    unequal,
)
from draftwood.bench.suites.kernel_cases.trees import deepest, tree_of
from draftwood.kernels.activation import sigmoid, softplus
from draftwood.kernels.delta_rule import DeltaLayer, DeltaShape, advance, granules, nodes
from draftwood.kernels.draft_tree import CAPACITY
from draftwood.kernels.scratch import slot_shape, visit_width


def _layer(setting: Setting, shape: DeltaShape, number: int) -> DeltaLayer:
    """Random weights and state, and a tape of bfloat16."""
    heads, channels = shape.value_heads, shape.channels
    state = setting.random(heads, shape.key_dim, shape.value_dim, seed=number) * 0.2
    gates = setting.random(2, heads, seed=number + 1)
    return DeltaLayer(
        conv=setting.random(4, channels, seed=number + 2),
        rate=-gates[0].abs(),
        bias=gates[1].clone(),
        state=state,
        window=setting.random(3, channels, seed=number + 3),
        raw=torch.zeros(3 + MAX_ROWS, channels, dtype=torch.bfloat16, device=setting.device),
        decay=torch.zeros(MAX_ROWS, heads, device=setting.device),
        beta=torch.zeros(MAX_ROWS, heads, device=setting.device),
    )


def _layers(setting: Setting, shape: DeltaShape) -> list[DeltaLayer]:
    """As many as the model has."""
    return [_layer(setting, shape, 10 * number) for number in range(setting.spec.attention.count(False))]


def _mixer_inputs(setting: Setting, shape: DeltaShape, *rows: int, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """raw, a and b as views of a layer's product."""
    sizes = [shape.channels, shape.value_heads * shape.value_dim, shape.value_heads, shape.value_heads]
    raw, _, b, a = setting.random(*rows, sum(sizes), seed=seed).split(sizes, -1)
    return raw, a, b


def _plan(setting: Setting, rows: int) -> Tensor:
    from draftwood.kernels.delta_rule import triton

    tree = tree_of(rows)
    return triton.plan_tree(tree.parents[:rows].to(setting.device), tree.order[:rows].to(setting.device))


def _slots(setting: Setting, shape: DeltaShape) -> Tensor:
    sizes = slot_shape(MAX_ROWS, shape.value_heads, shape.key_dim, shape.value_dim)
    return torch.empty(sizes, device=setting.device)


def _visits(shape: DeltaShape) -> int:
    """Bytes of a node's visit."""
    return FLOATS * visit_width(shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)


def _state_bytes(shape: DeltaShape) -> int:
    return FLOATS * shape.value_heads * shape.key_dim * shape.value_dim


def _gates_of(layer: DeltaLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """log decay and beta by the reference."""
    return layer.rate * softplus(a + layer.bias), sigmoid(b)


def stage_nodes(setting: Setting, shape: DeltaShape) -> Case:
    """A pass's convolution, norms and gates, and its tape, of a layer."""

    def make() -> Kernel:
        from draftwood.kernels.delta_rule import triton

        layers = _layers(setting, shape)

        def gate() -> float:
            layer, (raw, a, b) = layers[0], _mixer_inputs(setting, shape, setting.gated)
            triton.stage_nodes(raw, a, b, _plan(setting, setting.gated), layer, shape)
            g, beta = _gates_of(layer, a, b)
            tape = torch.cat((layer.window, raw)).bfloat16()
            gates = (layer.decay[: setting.gated], g.exp()), (layer.beta[: setting.gated], beta)
            errors = [beyond(made, expected, 1e-5, 1e-6) for made, expected in gates]
            return max(unequal(layer.raw[: len(tape)], tape), *errors)

        def work(rows: int) -> Work:
            plan, (raw, a, b) = _plan(setting, rows), _mixer_inputs(setting, shape, len(layers), rows)
            stage = partial(triton.stage_nodes, plan=plan, shape=shape)
            calls = [partial(stage, *x, layer=layer) for *x, layer in zip(raw, a, b, layers, strict=True)]
            row = (FLOATS + 2) * shape.channels + _visits(shape) + 16 * shape.value_heads
            return Work(calls, rows * row + shape.channels * (4 * 4 + 3 * 4 + 3 * 2))

        return Kernel(gate, work)

    return Case("delta_rule.stage_nodes", f"{shape.channels}", "raw, tape, visits, convolution, window", make)


def tree_rule(setting: Setting, shape: DeltaShape) -> Case:
    """The rule along a tree, of a layer."""

    def make() -> Kernel:
        from draftwood.kernels.delta_rule import triton

        layers, slots = _layers(setting, shape), _slots(setting, shape)

        def gate() -> float:
            rows, tree, layer = setting.gated, tree_of(setting.gated), layers[0]
            plan, (raw, a, b) = _plan(setting, rows), _mixer_inputs(setting, shape, rows)
            made = triton.tree_rule(triton.stage_nodes(raw, a, b, plan, layer, shape), plan, layer.state, slots, shape)
            g, beta = _gates_of(layer, a, b)
            parents, order = tree.parents[:rows].tolist(), tree.order[:rows].tolist()
            expected = nodes(
                layer.state, layer.window, raw.contiguous(), g.exp(), beta, layer.conv, shape, parents, order
            )
            return beyond(made, expected, 1e-4, 2e-5)

        def work(rows: int) -> Work:
            plan, (raw, a, b) = _plan(setting, rows), _mixer_inputs(setting, shape, len(layers), rows)
            calls = []
            for at, layer in enumerate(layers):
                visits = triton.stage_nodes(raw[at], a[at], b[at], plan, layer, shape)
                calls.append(partial(triton.tree_rule, visits, plan, layer.state, slots, shape))
            outputs = FLOATS * shape.value_heads * shape.value_dim
            return Work(calls, _state_bytes(shape) + rows * (_visits(shape) + outputs))

        return Kernel(gate, work)

    sizes = f"{shape.value_heads} x {shape.key_dim} x {shape.value_dim}"
    return Case("delta_rule.tree_rule", sizes, "state once, visits, outputs", make)


def commit_nodes(setting: Setting, shape: DeltaShape) -> Case:
    """Accepted nodes into the states of all layers."""
    count = setting.spec.attention.count(False)

    def make() -> Kernel:
        from draftwood.kernels.delta_rule import triton

        layers = _layers(setting, shape)
        table = triton.layer_table(layers)

        def path_of(rows: int) -> tuple[Tensor, Tensor]:
            path = deepest(rows)
            padded = torch.tensor(path + [-1] * (CAPACITY - len(path)), device=setting.device)
            return padded, torch.tensor(len(path), device=setting.device)

        def stage(rows: int) -> list[tuple[Tensor, Tensor, Tensor]]:
            plan = _plan(setting, rows)
            inputs = [_mixer_inputs(setting, shape, rows, seed=number) for number in range(count)]
            for (raw, a, b), layer in zip(inputs, layers, strict=True):
                triton.stage_nodes(raw, a, b, plan, layer, shape)
            return inputs

        def gate() -> float:
            inputs = stage(setting.gated)
            before = [(layer.state.clone(), layer.window.clone()) for layer in layers]
            triton.commit_nodes(table, *path_of(setting.gated), shape, torch.bfloat16)
            errors, path = [], deepest(setting.gated)
            for number in {0, count - 1}:
                layer, (raw, a, b) = layers[number], inputs[number]
                g, beta = _gates_of(layer, a, b)
                state, window = advance(*before[number], raw[path], g[path].exp(), beta[path], layer.conv, shape)
                errors += [beyond(layer.state, state, 1e-4, 2e-5), unequal(layer.window, window)]
            return max(errors)

        def work(rows: int) -> Work:
            stage(rows)
            where = path_of(rows)
            tape = (len(deepest(rows)) + 3) * (2 * shape.channels + 8 * shape.value_heads)
            moved = count * (2 * _state_bytes(shape) + tape + 12 * shape.channels)
            return Work([lambda: triton.commit_nodes(table, *where, shape, torch.bfloat16)], moved)

        return Kernel(gate, work)

    return Case("delta_rule.commit_nodes", f"{count} layers", "states in and out, a deepest path's tape", make)


def prefill(setting: Setting, shape: DeltaShape) -> Case:
    """A prompt's chunk through a layer."""
    tokens = setting.prompt

    def make() -> Kernel:
        from draftwood.kernels.delta_rule import triton

        layer = _layer(setting, shape, 0)

        def gate() -> float:
            some = min(128, tokens)
            raw, a, b = _mixer_inputs(setting, shape, some)
            g, beta = _gates_of(layer, a, b)
            start, before, values, decay, rates, conv = (
                x.double() for x in (layer.state, layer.window, raw, g, beta, layer.conv)
            )
            expected, state, window = granules(start, before, values, decay, rates, conv, shape, some)
            made = triton.prefill(raw, a, b, layer, shape, some)
            errors = distance(made, expected) / 2e-4, distance(layer.state, state) / 2e-4
            return max(*errors, unequal(layer.window, window.float()))

        def work(rows: int) -> Work:
            moved = tokens * FLOATS * (
                shape.channels + 2 * shape.value_heads + shape.value_heads * shape.value_dim
            ) + 2 * _state_bytes(shape)
            inputs = zip(*_mixer_inputs(setting, shape, setting.sets(moved), tokens), strict=True)
            return Work([partial(triton.prefill, *x, layer, shape, tokens) for x in inputs], moved)

        return Kernel(gate, work)

    return Case("delta_rule.prefill", f"{tokens} of a layer", "raw, gates, outputs, state in and out", make, "prompt")
