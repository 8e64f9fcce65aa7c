"""Fitting a draft: packed rows, random anchors, one optimiser step after the other, by the clock or by count.

What a step sees follows from the seed and the step's number alone, so a run that was stopped goes on as if nothing
had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftwood.training.draft_net import DraftNet, DraftShape
from draftwood.training.loss import WEIGHTINGS, HeadLoss
from draftwood.training.masks import BlockRule, Realisation, realisation_for
from draftwood.training.packing import Anchors, Rows, draw_anchors
from draftwood.training.recipe import FitRecipe
from draftwood.training.teachers.base import Teacher

LOG_EVERY = 20
SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Point:
    """One mark of the curve. tau_anchor: 1 + mean slots right from the first on, over the anchors of the step."""

    step: int
    seconds: float
    loss: float
    tau_anchor: float
    first_slot: float
    rate: float
    anchors_per_second: float


class Replay:
    """Runs a draft over anchors of rows, the same way for fitting and for judging."""

    def __init__(self, teacher: Teacher, net: DraftNet, realisation: Realisation) -> None:
        self.teacher, self.net, self.realisation = teacher, net, realisation

    def features(self, rows: Rows, shift: int = 0) -> Tensor:
        """[n, S, T*E] of the draft's taps, moved by `shift` layers for a control."""
        features, _ = self.teacher.read(rows, tuple(tap + shift for tap in self.net.shape.taps))
        return features

    def hidden(
        self,
        features: Tensor,
        rows: Rows,
        anchors: Anchors,
        causal: bool | None = None,
        leak: bool = False,
        mask_token: int | None = None,
    ) -> Tensor:
        """Hidden rows of the slots 1 .. B-1, [n, A, B-1, E]; the last three are for controls."""
        shape = self.net.shape
        length = rows.tokens.shape[1]
        masks: dict[int | None, Any] = {}
        for window in set(shape.windows):
            rule = BlockRule(shape.block, shape.causal if causal is None else causal, window, leak)
            masks[window] = self.realisation.blocks(anchors.at, anchors.start, length, rule)
        with self._precision():
            hidden: Tensor = self.net(
                features,
                rows.positions,
                anchors,
                self.realisation.attend,
                [masks[window] for window in shape.windows],
                mask_token,
            )
        return hidden[:, :, 1:]

    def _precision(self) -> AbstractContextManager[Any]:
        cuda = self.teacher.device == "cuda"
        return torch.autocast(self.teacher.device, dtype=torch.bfloat16, enabled=cuda)


class Fitter:
    """A draft, its optimiser and where they stand.

    rows: the training text. compiled: compile what repeats (a GPU gains about three times).
    """

    def __init__(
        self,
        teacher: Teacher,
        shape: DraftShape,
        recipe: FitRecipe,
        rows: Rows,
        seed: int,
        compiled: bool,
    ) -> None:
        self.recipe, self.rows, self.seed, self.device = recipe, rows, seed, teacher.device
        self.net = DraftNet(shape, teacher.embedding, recipe.row_tokens).to(teacher.device)
        self.net.initialise(torch.Generator(teacher.device).manual_seed(seed))
        if compiled:
            self.net.compile_layers()
            teacher.compile()
        self.replay = Replay(teacher, self.net, realisation_for(teacher.device))
        self.loss = HeadLoss(teacher.head, WEIGHTINGS[recipe.weighting](recipe.strength), compiled)
        self.optimisers = OPTIMISERS[recipe.optimiser](self.net, recipe)
        self.done, self.seconds = 0, 0.0
        self.curve: list[Point] = []
        self._orders: dict[int, Tensor] = {}

    def batch(self, step: int) -> Rows:
        """The rows of a step: every row once an epoch, in an order of its own."""
        picks = []
        for number in range(step * self.recipe.rows, (step + 1) * self.recipe.rows):
            epoch, place = divmod(number, len(self.rows))
            if epoch not in self._orders:
                shuffled = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed + epoch))
                self._orders = {epoch: shuffled} if place == 0 else self._orders | {epoch: shuffled}
            picks.append(int(self._orders[epoch][place]))
        return self.rows.take(torch.tensor(picks), self.device)

    def rate_factor(self, progress: float) -> float:
        """Warm up by steps, then flat, then straight to 0 over the last share of the run."""
        warm = min(1.0, (self.done + 1) / self.recipe.warm_up) if self.recipe.warm_up else 1.0
        return warm * min(1.0, max(0.0, 1 - progress) / self.recipe.decay if self.recipe.decay else 1.0)

    def step(self, progress: float) -> tuple[Tensor, Tensor]:
        """One optimiser step; the loss, and the slots that were right, bool [n * A, B-1]."""
        rows = self.batch(self.done)
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.done)
        anchors = draw_anchors(rows, self.recipe.anchors, self.net.shape.block, generator)
        hidden = self.replay.hidden(self.replay.features(rows), rows, anchors)
        result = self.loss(hidden.flatten(0, 1), anchors.labels.flatten(0, 1), anchors.valid.flatten(0, 1))
        result.value.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        factor = self.rate_factor(progress)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.done += 1
        live = (anchors.at < rows.tokens.shape[1]).flatten()
        return result.value.detach(), result.right[live]

    def run(
        self,
        seconds: float,
        folder: Path | None = None,
        tell: Callable[[Point], None] = lambda _: None,
        stop_after: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Fit until `seconds` (of all runs together) or the recipe's steps are over, or `stop()` says so.

        folder: where checkpoints go: `last.pt` every two minutes and at the end, `flat.pt` where the rate begins to
        fall. stop_after: end at this step as if killed, without saving. stop: asked after every step; a run that ends
        by it has its checkpoint and can be resumed.
        """
        recipe = self.recipe
        begun = saved = time.monotonic() - self.seconds
        marked_step, marked_time, flat = self.done, self.seconds, False

        def progress() -> float:
            by_count = self.done / recipe.steps if recipe.steps else 0.0
            return max(by_count, self.seconds / seconds if math.isfinite(seconds) else 0.0)

        while progress() < 1 and not stop():
            if self.done == stop_after:
                return
            if not flat and progress() >= 1 - recipe.decay:
                flat = True
                self._save(folder, "flat.pt")
            value, right = self.step(progress())
            if self.done % LOG_EVERY == 0 or self.done == recipe.steps:
                loss = float(value)  # waits for the device
                self.seconds = time.monotonic() - begun
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {self.done}")
                leading = right.long().cumprod(-1).sum(-1).float().mean()
                pace = (self.done - marked_step) * recipe.rows * recipe.anchors / max(1e-9, self.seconds - marked_time)
                marked_step, marked_time = self.done, self.seconds
                point = Point(
                    self.done,
                    round(self.seconds, 2),
                    loss,
                    1 + float(leading),
                    float(right[:, 0].float().mean()),
                    self.optimisers[0].param_groups[0]["lr"],
                    pace,
                )
                self.curve.append(point)
                tell(point)
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                self._save(folder, "last.pt")
        self._save(folder, "last.pt")

    def _save(self, folder: Path | None, name: str) -> None:
        if folder is not None:
            part = folder / f"{name}.part"
            torch.save(self.state(), part)
            part.replace(folder / name)

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "net": self.net.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.done,
            "seconds": self.seconds,
            "seed": self.seed,
            "curve": [asdict(point) for point in self.curve],
        }

    def resume(self, state: dict[str, Any], fresh_clock: bool = False) -> None:
        """Go on from a state; `fresh_clock` counts the seconds of the schedule anew."""
        self.net.load_state_dict(state["net"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.done, self.seconds = state["step"], 0.0 if fresh_clock else state["seconds"]
        self.curve = [Point(**point) for point in state["curve"]]


def _by_kind(net: DraftNet) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices, and everything else."""
    parameters = list(net.parameters())
    return [each for each in parameters if each.ndim == 2], [each for each in parameters if each.ndim != 2]


def _adamw(net: DraftNet, recipe: FitRecipe) -> list[torch.optim.Optimizer]:
    matrices, others = _by_kind(net)
    return [_make_adamw([(matrices, recipe.weight_decay), (others, 0.0)], recipe.rate)]


def _muon(net: DraftNet, recipe: FitRecipe) -> list[torch.optim.Optimizer]:
    matrices, others = _by_kind(net)
    muon = torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    muon.param_groups[0]["full_rate"] = recipe.rate
    return [muon, _make_adamw([(others, 0.0)], recipe.rest_rate)]


def _make_adamw(groups: list[tuple[list[Any], float]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": weight, "full_rate": rate} for params, weight in groups],
        lr=rate,
        betas=(0.9, 0.95),
        fused=groups[0][0][0].is_cuda,
    )


OPTIMISERS: dict[str, Callable[[DraftNet, FitRecipe], list[torch.optim.Optimizer]]] = {"adamw": _adamw, "muon": _muon}
