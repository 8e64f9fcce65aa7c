"""Playing scripts with a target: many sequences take one step together, each at its own place in its own script.

A script (`prompts.scripts.Script`) is a list of tokens to feed and of stretches that the target writes itself. All
state lies on the device, so that a step can be a captured graph; the host looks in every few steps to collect the
sequences that are done and to put new scripts in their places.

Letters: N sequences, P longest script, S capacity of a sequence, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftwood.training.prompts.scripts import USER, Script
from draftwood.training.roles import FED, SUPERVISED, WRITTEN_USER
from draftwood.training.teachers.base import Teacher

END = -3
"""Ends a script in the device's table."""

LOOK_IN = 16
"""Steps between two looks of the host."""


@dataclass(frozen=True)
class WritingRules:
    """How the target writes.

    stops: tokens that end an answer; `turn_end` alone lets a script go on. user_cap: tokens of a written user turn.
    temperature, min_p: of sampled answers. user_temperature, user_min_p: of user turns.
    """

    stops: tuple[int, ...]
    turn_end: int
    user_cap: int = 160
    temperature: float = 0.75
    min_p: float = 0.05
    user_temperature: float = 1.0
    user_min_p: float = 0.01


@dataclass(frozen=True)
class Written:
    """A finished script: token ids int64 and roles uint8."""

    script: Script
    tokens: npt.NDArray[np.int64]
    roles: npt.NDArray[np.uint8]


class Player:
    """N sequences on their way through scripts."""

    def __init__(self, teacher: Teacher, sequences: int, capacity: int, rules: WritingRules, longest: int) -> None:
        self.decoder = teacher.decoder(sequences, capacity)
        self.device, self.capacity, self.rules = teacher.device, capacity, rules

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(sequences, *shape, dtype=dtype, device=teacher.device)

        self.script = zeros(longest + 1)
        self.at, self.position, self.token = zeros(), zeros(), zeros()
        self.tokens = zeros(capacity, dtype=torch.int32)
        self.roles = zeros(capacity, dtype=torch.uint8)
        self.temperature, self.cap, self.stretch = zeros(dtype=torch.float32), zeros(), zeros()
        self.done = torch.ones_like(self.at, dtype=torch.bool)
        self._rows = torch.arange(sequences, device=teacher.device)
        self._stops = torch.tensor(rules.stops, device=teacher.device)
        self._choose: Callable[..., Tensor] = choose
        self._graph: Any = None

    def step(self) -> None:
        """Feed every sequence its token and decide the next."""
        rules = self.rules
        logits = self.decoder.step(self.token, self.position)
        next_up = self.script.gather(1, self.at.unsqueeze(1)).squeeze(1)
        user = next_up == USER
        temperature = torch.where(user, rules.user_temperature, self.temperature)
        floor = torch.where(user, rules.user_min_p, rules.min_p)
        own = self._choose(logits, temperature, floor)
        fed = next_up >= 0
        stretch = torch.where(fed, 0, self.stretch + 1)
        full = stretch >= torch.where(user, rules.user_cap, self.cap)
        own = torch.where(user & full, rules.turn_end, own)
        token = torch.where(fed, next_up, own)
        stopped = ~fed & torch.isin(token, self._stops)
        live = ~self.done
        place = (self.position + live).clamp(max=self.capacity - 1)
        role = torch.where(fed, FED, torch.where(user, WRITTEN_USER, SUPERVISED)).to(torch.uint8)
        self.tokens[self._rows, place] = torch.where(live, token.int(), self.tokens[self._rows, place])
        self.roles[self._rows, place] = torch.where(live, role, self.roles[self._rows, place])
        at = (self.at + (live & (fed | stopped))).clamp(max=self.script.shape[1] - 1)
        over = self.script.gather(1, at.unsqueeze(1)).squeeze(1) == END
        broken = ~fed & ((full & ~user) | (stopped & (token != rules.turn_end)))
        self.done |= over | broken | (place >= self.capacity - 1)
        self.at.copy_(at)
        self.position.copy_(place)
        self.token.copy_(torch.where(live, token, self.token))
        # A stretch that ended leaves its count behind for the next one.
        self.stretch.copy_(torch.where(stopped, 0, stretch))

    def capture(self) -> None:
        """Make `step` a captured graph (GPU). The sequences must be idle: the trial steps leave no trace in them."""
        self._choose = torch.compile(choose, dynamic=False)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.step()

    def advance(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            if self._graph is None:
                self.step()
            else:
                self._graph.replay()

    def put(self, places: Tensor, scripts: Sequence[Script]) -> None:
        """Begin scripts in places (int64) that are done."""
        table = np.full((len(scripts), self.script.shape[1]), END, np.int64)
        for row, script in enumerate(scripts):
            table[row, : len(script.tokens)] = script.tokens
        lines = torch.from_numpy(table).to(self.device)
        self.script[places] = lines
        self.at[places] = 1
        self.position[places] = 0
        self.stretch[places] = 0
        self.token[places] = lines[:, 0]
        self.tokens[places, 0] = lines[:, 0].int()
        self.roles[places, 0] = FED
        answers = [(0.0 if script.greedy else self.rules.temperature, script.cap) for script in scripts]
        self.temperature[places] = torch.tensor([t for t, _ in answers], device=self.device)
        self.cap[places] = torch.tensor([cap for _, cap in answers], device=self.device)
        self.done[places] = False


def choose(logits: Tensor, temperature: Tensor, floor: Tensor) -> Tensor:
    """Draw from softmax(logits / T) cut at `floor` times its largest value; T = 0 takes the largest.

    logits [N, V], temperature and floor float32 [N] -> int64 [N].
    """
    logits = logits.float()
    greedy = temperature <= 0
    scaled = logits / torch.where(greedy, 1.0, temperature).unsqueeze(1)
    cut = scaled.amax(1, keepdim=True) + floor.log().unsqueeze(1)
    noise = -torch.log(torch.empty_like(scaled).exponential_().clamp_min(1e-20))
    noisy = torch.where(scaled >= cut, scaled + noise * (~greedy).unsqueeze(1), -torch.inf)
    return noisy.argmax(1)


def play(
    player: Player,
    scripts: Iterable[Script],
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Written]:
    """Play scripts until they are through or `stop()` says so; unfinished ones are then dropped.

    progress: told the steps taken so far.
    """
    waiting = iter(scripts)
    playing: dict[int, Script] = {}
    steps = 0

    def refill(places: list[int]) -> None:
        fresh = [(place, script) for place, script in zip(places, waiting, strict=False)]
        if fresh:
            player.put(torch.tensor([place for place, _ in fresh], device=player.device), [s for _, s in fresh])
            playing.update(fresh)

    refill(list(range(len(player.done))))
    while playing and not stop():
        player.advance(LOOK_IN)
        steps += LOOK_IN
        progress(steps)
        done = player.done.cpu()
        places = [place for place in playing if done[place]]
        if not places:
            continue
        index = torch.tensor(places, device=player.device)
        lengths = player.position[index].cpu().numpy() + 1
        tokens, roles = player.tokens[index].cpu().numpy(), player.roles[index].cpu().numpy()
        for row, place in enumerate(places):
            length = lengths[row]
            yield Written(playing.pop(place), tokens[row, :length].astype(np.int64), roles[row, :length].copy())
        refill(places)


class Deadline:
    """Says when a stretch of time is over; begins when it is made."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.end - time.monotonic()

    def __call__(self) -> bool:
        """Whether the time is over."""
        return self.left <= 0
