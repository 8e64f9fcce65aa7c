"""A plan is what gets allocated, to the byte: against tensors made without the planner's help, at tiny scale."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

import gguf
import pytest
import torch
from torch import Tensor

from draftwood.batch import GRANULE
from draftwood.buffers import total
from draftwood.cache.kv import KVState
from draftwood.cache.recurrent import DeltaWeights, RecurrentState
from draftwood.cache.registry import KV_TYPES, kv_pair
from draftwood.cache.sequence import Sequence
from draftwood.cache.states import draft_state
from draftwood.engine.sources import open_draft, open_target
from draftwood.formats.ggml import BLOCK_TYPES
from draftwood.formats.gguf import GGUFFile
from draftwood.formats.header import ModelSource
from draftwood.formats.source import TensorInfo
from draftwood.kernels.buffers import matrix_buffers
from draftwood.kernels.delta_rule import DeltaShape
from draftwood.kernels.layouts import COMPACT, OUTPUTS, WEIGHTS
from draftwood.kernels.linear import LinearRequest, LinearWeight, load_linear
from draftwood.kernels.linear.packing import pack
from draftwood.layers.weights import Weights
from draftwood.models import buffers, dflash, known
from draftwood.models.base import Model
from draftwood.models.draft_spec import DraftSpec, read_spec
from draftwood.models.draft_tensors import DraftTensors, open_source
from draftwood.models.pass_buffers import pass_buffers
from draftwood.models.registry import architecture
from draftwood.models.spec import DeltaSpec, ModelSpec
from draftwood.planner import hardware
from draftwood.planner.inventory import Draft, Target, draft_of, target_of, target_of_file
from draftwood.planner.plan import OURS, Row, Setup
from draftwood.planner.search import Question, weigh
from tests.conftest import VENDORED
from tests.models.test_dflash import TARGET_SPEC, VENDORED_DRAFT, edited, target_on

CASES = 200
PRODUCTS = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""Matrices with one input in the order of the model, as drawn."""


def tensor(name: str, rows: int, columns: int, kind: str) -> TensorInfo:
    block = BLOCK_TYPES[kind]
    return TensorInfo(name, (rows, columns), block, rows * block.row_bytes(columns))


def drawn_target(draw: random.Random) -> Target:
    """A hybrid or dense model of a few narrow layers, its matrices of mixed types."""
    layers, hidden, head_dim = draw.randint(1, 5), 256, draw.choice((32, 64, 128))
    attention = tuple(draw.random() < 0.5 for _ in range(layers))
    delta = None if all(attention) else DeltaSpec(draw.choice((1, 2)), 2 * draw.randint(1, 2), 16)
    spec = ModelSpec(
        *("drawn", layers, hidden, 256 * draw.randint(1, 3), 256 * draw.randint(1, 4), 4, draw.choice((1, 2, 4))),
        *(head_dim, 1e-6, head_dim, 1e4, "halves", 4096, attention),
        gated=draw.random() < 0.5,
        delta=delta,
    )
    named = [("token_embd.weight", spec.vocab, hidden)]
    if draw.random() < 0.5:
        named.append(("output.weight", spec.vocab, hidden))
    for i in range(layers + draw.randint(0, 1)):  # the last one may be a block for multi-token prediction
        named += [(f"blk.{i}.attn_{axis}.weight", draw.choice((3, 48, 128, 200)), hidden) for axis in "vqk"]
        named += [(f"blk.{i}.ffn_{name}.weight", spec.ffn, hidden) for name in ("up", "gate")]
        named.append((f"blk.{i}.ffn_down.weight", hidden, spec.ffn))
    kinds = draw.sample(list(BLOCK_TYPES), 2)
    tensors = [tensor(name, rows, columns, draw.choice(kinds)) for name, rows, columns in named]
    tensors.append(TensorInfo("output_norm.weight", (hidden,), BLOCK_TYPES["F32"], 4 * hidden))
    tensors.append(tensor("blk.0.ssm_conv1d.weight", 160, 4, "F32"))
    return Target("drawn", "a drawn model", spec, tuple(tensors))


def drawn_draft(draw: random.Random, target: Target) -> Draft:
    layers, head_dim = draw.randint(1, 3), draw.choice((32, 64))
    windows = tuple(draw.choice((None, 64, 100, 192)) for _ in range(layers))
    spec = DraftSpec(
        *("drawn", "dflash", layers, 256, 256, 2, draw.choice((1, 2)), head_dim, 1e-6, 1e4, draw.choice((4, 8, 16)), 0),
        *(tuple(range(draw.randint(1, 3))), windows, (False,) * layers, (), target.spec.vocab, 256, 0),
    )
    kinds = draw.sample(list(BLOCK_TYPES), 2)
    names = [f"blk.{i}.{stem}.weight" for i in range(layers) for stem in ("attn_q", "attn_v", "attn_k", "ffn_up")]
    tensors = [tensor(name, draw.choice((40, 256)), 256, draw.choice(kinds)) for name in names]
    return Draft("drawn", spec, tuple(tensors))


def allocated(row: Row, question: Question, rows: int) -> list[Tensor]:
    """Every tensor of a row: states by their own classes, the rest with the shapes that the design names."""
    target, draft, context = question.target, row.draft, question.context
    spec, capacity = target.spec, context + -context % GRANULE
    made: list[Tensor] = []
    compact = "compact_weights" in row.levers
    if "host_table" not in row.levers:
        made.append(torch.empty(target.tensors[0].nbytes, dtype=torch.uint8))
    own_head = any(info.name == "output.weight" for info in target.tensors)
    used = [info for info in target.tensors[own_head:] if not info.name.startswith(f"blk.{spec.layers}.")]
    made += weights(used, products(spec.layers), compact)
    states: list[KVState | RecurrentState] = []
    for attends in spec.attention:
        if attends:
            states.append(KVState(row.kv, spec.kv_heads, spec.head_dim, capacity, "cpu"))
        elif spec.delta is not None:
            states.append(recurrent(spec.delta))
            made += tape(spec.delta)
    sequence = Sequence(states, capacity, "cpu")
    made += [sequence.tokens, *(t for state in states for t in tensors_of(state))]
    made += scratch(row, question, rows)
    if draft is not None:
        facts, kv = draft.spec, kv_pair("tq4_0" if "draft_kv" in row.levers else "q8_0")
        context = [[f"blk.{i}.attn_{axis}" for axis in "kv" for i in range(facts.layers)]]
        made += weights(list(draft.tensors), products(facts.layers) + context, compact)
        for window in facts.windows:
            made += tensors_of(draft_state(kv, facts.kv_heads, facts.head_dim, capacity, window, "cpu"))
        width = len(facts.taps) * spec.hidden
        made += [torch.empty(rows, width), torch.empty(2048, width)]
    return made


def products(layers: int) -> list[list[str]]:
    """Names of the matrices of a drawn model, those with one input together."""
    of_blocks = [[f"blk.{i}.{stem}" for stem in group] for i in range(layers) for group in PRODUCTS]
    return [["token_embd"], ["output"], *of_blocks]


def weights(infos: list[TensorInfo], together: list[list[str]], compact: bool) -> list[Tensor]:
    """Vectors and the convolution in float32; matrices packed by the kernels' code."""
    named = {info.name.removesuffix(".weight"): info for info in infos}
    made = [torch.empty(info.shape) for name, info in named.items() if "norm" in name or "conv" in name]
    for names in together:
        runs: list[tuple[str, list[int], int]] = []
        for name in filter(named.__contains__, names):
            kind, (rows, columns) = named[name].block_type.name, named[name].shape
            if not runs or runs[-1][0] != kind:
                runs.append((kind, [], columns))
            runs[-1][1].append(rows)
        for kind, counts, columns in runs:
            made += packed(kind, sum(counts), columns, WEIGHTS[compact])
    return made


@cache
def packed(kind: str, rows: int, columns: int, layout: str) -> list[Tensor]:
    """The tensors of a matrix as the GPU kernels read it."""
    block = BLOCK_TYPES[kind]
    made = pack(torch.zeros(rows, block.row_bytes(columns), dtype=torch.uint8), block, columns, layout)
    parts = made.words, made.high, made.scales, made.superscales, made.factor
    return [t for t in parts if t is not None]


def recurrent(delta: DeltaSpec) -> RecurrentState:
    shape = DeltaShape(delta.key_heads, delta.value_heads, delta.state_dim, delta.state_dim, 1e-6)
    gate = torch.zeros(delta.value_heads)
    return RecurrentState(shape, DeltaWeights(torch.zeros(4, delta.channels), gate, gate, torch.bfloat16), "cpu")


def tape(delta: DeltaSpec) -> list[Tensor]:
    """As on a GPU: for the largest pass, and the three rows before it."""
    raw = torch.empty(3 + 64, delta.channels, dtype=torch.bfloat16)
    return [raw, torch.empty(64, delta.value_heads), torch.empty(64, delta.value_heads)]


def tensors_of(state: KVState | RecurrentState) -> list[Tensor]:
    if isinstance(state, RecurrentState):
        return [state.state, state.window]
    return [t for plane in (state.keys, state.values) for t in plane.buffers().values()]


def scratch(row: Row, question: Question, rows: int) -> list[Tensor]:
    """Of the shapes that tests/models/test_pass_buffers.py counts where they are made."""
    draft = None if row.draft is None else row.draft.spec
    stated = pass_buffers(question.target.spec, row.kv, question.context, rows, draft)
    return [torch.empty(buffer.shape, dtype=getattr(torch, buffer.dtype)) for buffer in stated]


@pytest.mark.parametrize("part", range(4))
def test_every_fit_is_the_sum_of_what_is_allocated(part: int) -> None:
    """200 drawn cards, contexts and models; limits lie around the sum, often on it to the byte."""
    draw = random.Random(part)
    reserved = hardware.DRIVER + hardware.GRAPHS + hardware.MARGIN
    fitted = 0
    for _ in range(CASES // 4):
        target = drawn_target(draw)
        draft = drawn_draft(draw, target) if draw.random() < 0.6 else None
        budget = draw.choice((None, 1, 7, 22, 63))
        allowed = [kind for kind in KV_TYPES.values() if target.spec.head_dim % kind.head_multiple == 0]
        question = Question(
            target,
            (draft,),
            draw.choice(list(hardware.cards().values())),
            memory=1 << 40,
            limit=1 << 40,
            context=draw.randint(1, 700),
            budget=budget,
            kv=(draw.choice(allowed), draw.choice(allowed)),
        )
        rows = 1 if draft is None else 64 if budget is None else budget + 1
        roomy = weigh(question)[0]
        taken = roomy.total
        assert taken == reserved + sum(t.nbytes for t in allocated(roomy, question, rows))
        share = draw.choice((0, 0, 1, draw.randint(2, taken // 20), draw.randint(2, taken // 5)))
        limit = taken + draw.choice((-1, 1)) * share
        (row,) = weigh(dataclasses.replace(question, limit=limit))
        needed = reserved + sum(t.nbytes for t in allocated(row, question, rows))
        assert row.total == needed
        assert row.fits == (needed <= limit)
        fitted += row.fits
    assert CASES // 4 * 0.2 < fitted < CASES // 4


@pytest.mark.parametrize("name", ["l-b.Q4_1.gguf", "q3-b.Q4_K_M.gguf", "q35-c.Q4_K_M.gguf"])
def test_a_loaded_model_keeps_what_its_buffers_say(name: str) -> None:
    path = VENDORED / "models" / name
    source = GGUFFile.open(path)
    module = architecture(source)
    model = module.build(module.read_spec(source), Weights(source, "cpu", "auto"))
    for kv in ("f32", "q8_0/f16", *(kind.name for kind in KV_TYPES.values() if model.spec.head_dim % 32 == 0)):
        for capacity in (1, 64, 200):
            sequence = model.new_sequence(kv_pair(kv), capacity)
            stated = buffers.cache_buffers(model.spec, kv_pair(kv), capacity) + buffers.state_buffers(model.spec)
            assert total(stated) == sequence.nbytes


@pytest.mark.parametrize("window", [None, 100])
def test_a_loaded_draft_keeps_what_its_buffers_say(window: int | None) -> None:
    source = open_source(VENDORED / "draft" / VENDORED_DRAFT)
    spec = read_spec(source)
    spec = dataclasses.replace(spec, windows=(window, *spec.windows[1:]))
    model = dflash.build(spec, Weights(DraftTensors(source), "cpu", "auto"), target_on("cpu"))
    for capacity in (64, 320):
        stated = buffers.draft_cache_buffers(spec, kv_pair("q8_0"), capacity)
        assert total(stated) == model.new_context(kv_pair("q8_0"), capacity).nbytes


def widths(kind: str) -> list[int]:
    """Lengths of rows that a type can store, some of them no whole number of steps."""
    return [256, 512, 768] if BLOCK_TYPES[kind].block_size == 256 else [32, 96, 128, 160, 288, 512]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_matrix_is_planned_as_it_is_packed(kind: str) -> None:
    """Drawn small shapes; a plan joins neighbours before it pads."""
    draw = random.Random(kind)
    for _ in range(12):
        columns = draw.choice(widths(kind))
        parts = [draw.choice((1, 31, 48, 127, 128, 129, 300)) for _ in range(draw.randint(1, 3))]
        raw = torch.zeros(sum(parts), BLOCK_TYPES[kind].row_bytes(columns), dtype=torch.uint8)
        run = [tensor(f"{i}.weight", rows, columns, kind) for i, rows in enumerate(parts)]
        taken = [pack(raw, BLOCK_TYPES[kind], columns, layout).nbytes for layout in WEIGHTS]
        assert [total(matrix_buffers(run, layout)) for layout in WEIGHTS] == taken
        padded = -(-len(raw) // OUTPUTS) * OUTPUTS
        if kind in COMPACT:
            assert taken[1] == padded * (BLOCK_TYPES[kind].row_bytes(columns) + 4)


class Loaded:
    """Counts what `Weights` puts on a device: matrices as the GPU form packs them, the rest in float32."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nbytes = 0
        dense = Weights.dense

        def counted_linear(raw: Tensor, request: LinearRequest) -> LinearWeight:
            self.nbytes += pack(raw, request.block_type, request.in_features).nbytes
            return load_linear(raw, request)

        def counted_dense(self_: Weights, name: str, shape: tuple[int, ...]) -> Tensor:
            made = dense(self_, name, shape)
            self.nbytes += made.nbytes
            return made

        monkeypatch.setattr("draftwood.layers.weights.load_linear", counted_linear)
        monkeypatch.setattr(Weights, "dense", counted_dense)

    def take(self) -> int:
        """Bytes since the last call."""
        taken, self.nbytes = self.nbytes, 0
        return taken


def model_of(source: ModelSource) -> Model:
    module = architecture(source)
    return module.build(module.read_spec(source), Weights(source, "cpu", "auto"))


@pytest.mark.parametrize(
    "name", ["l-b.Q4_1.gguf", "q3-b.Q4_K_M.gguf", "q35-c.Q4_K_M.gguf", "synthetic:qwen3.6-27b-tiny"]
)
def test_a_loaded_models_weights_are_those_of_the_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_target(name if known.is_synthetic(name) else str(VENDORED / "models" / name))
    counter = Loaded(monkeypatch)
    model_of(source)
    assert target_of(source, name).layout_bytes["fast"] == counter.take()


def test_a_loaded_drafts_weights_are_those_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = open_target("synthetic:qwen3.6-27b-tiny"), open_draft("synthetic:qwen3.6-27b-tiny-dflash")
    model = model_of(target)
    counter = Loaded(monkeypatch)
    dflash.build(read_spec(draft), Weights(DraftTensors(draft), "cpu", "auto", exact=False), model)
    assert draft_of(draft, target_of(target, "tiny"), "draft").layout_bytes["fast"] == counter.take()


def test_a_shortlist_copies_rows_of_the_targets_head(monkeypatch: pytest.MonkeyPatch) -> None:
    head = tensor("output.weight", TARGET_SPEC.vocab, TARGET_SPEC.hidden, "F32")
    target = Target("stand-in", "", TARGET_SPEC, (head,))
    source = GGUFFile.open(VENDORED / "draft" / VENDORED_DRAFT)
    short = edited(source, dflash__shortlist=list(range(0, 300, 2)))
    counter = Loaded(monkeypatch)
    for draft in (source, short):
        dflash.build(read_spec(draft), Weights(DraftTensors(draft), "cpu", "auto", exact=False), target_on("cpu"))
        assert draft_of(draft, target, "draft").layout_bytes["fast"] == counter.take()


def test_the_weights_of_a_file_are_those_of_its_tensors() -> None:
    path = VENDORED / "models" / "q35-c.Q4_K_M.gguf"
    target = target_of_file(path)
    unused = f"blk.{target.spec.layers}."  # the block for multi-token prediction
    sizes = {t.name: t.n_bytes for t in gguf.GGUFReader(path).tensors if not t.name.startswith(unused)}
    table = sizes.pop("token_embd.weight") if "output.weight" in sizes else 0
    assert target.file_bytes == sum(sizes.values())
    assert target.layout_bytes["fast"] > target.layout_bytes["compact"]
    parts = OURS.parts(plain_setup(target))
    assert parts["table"] == (table or sizes["token_embd.weight"])


def plain_setup(target: Target) -> Setup:

    return Setup(target, None, kv_pair("f16"), kv_pair("q8_0"), 64, 1)
