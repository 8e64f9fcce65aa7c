"""A teacher and a draft small enough to fit in a test."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from draftwood.formats.gguf import GGUFFile
from draftwood.training.draft_net import DraftNet, DraftShape
from draftwood.training.fit import Replay
from draftwood.training.masks import realisation_for
from draftwood.training.packing import Document
from draftwood.training.teachers import open_teacher
from draftwood.training.teachers.base import Teacher
from tests.conftest import VENDORED

SHAPE = DraftShape(
    layers=2,
    hidden=192,
    ffn=256,
    heads=3,
    kv_heads=1,
    head_dim=64,
    eps=1e-6,
    rope_base=1e5,
    block=8,
    mask_token=5,
    taps=(1, 2, 3),
    causal=True,
    windows=(None, None),
)


def target_file(name: str = "l-b.Q4_1") -> GGUFFile:
    return GGUFFile.open(VENDORED / "models" / f"{name}.gguf")


def teacher() -> Teacher:
    return open_teacher(target_file(), "cpu")


def net_for(taught: Teacher, seed: int = 0, **changes: object) -> DraftNet:
    shape = dataclasses.replace(SHAPE, **changes)  # type: ignore[arg-type]
    net = DraftNet(shape, taught.embedding, 512)
    net.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():  # louder than a fresh draft, so that a wrong mask shows
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return net


def replay_for(taught: Teacher, net: DraftNet) -> Replay:
    return Replay(taught, net, realisation_for("cpu"))


def document(length: int, answer: tuple[int, int], seed: int, vocab: int = 512) -> Document:
    """Random ids, supervised in answer[0] .. answer[1]-1."""
    roles = np.zeros(length, np.uint8)
    roles[slice(*answer)] = 2
    return np.random.default_rng(seed).integers(6, vocab, length), roles


def places(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)
