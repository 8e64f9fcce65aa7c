"""DFlash drafting: one pass of a block draft gives a distribution for every depth; a tree grows from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from draftwood.batch import GRANULE, MAX_ROWS
from draftwood.cache.device_draft import DeviceDraftContext
from draftwood.decode.drafters.base import Drafter, DrafterRequest, Guesses
from draftwood.decode.drafters.none import no_guesses, root_only
from draftwood.decode.tree import ROOT_ONLY, DraftTree, TreeShape, build_tree
from draftwood.errors import UsageError
from draftwood.kernels.top_k import load_top_k
from draftwood.layers.weights import Weights
from draftwood.models.dflash import DraftContext, DraftModel, build
from draftwood.models.draft_spec import DraftSpec, fit, read_spec
from draftwood.models.draft_tensors import DraftTensors

COLDEST = 1e-3
"""Log-probabilities are taken at no lower temperature: far below, all but one token would be impossible."""


class DFlashDrafter(Drafter):
    """Proposes from one sequence's context. spec: the draft's facts."""

    name = "dflash"

    def __init__(
        self, model: DraftModel, context: DraftContext, block_size: int, device: DeviceDraftContext | None = None
    ) -> None:
        self.model, self.context, self.spec = model, context, model.spec
        self._device = device
        self.wants = model.spec.taps
        self.synthetic = model.spec.synthetic
        self.block_size: int = block_size
        self.max_depth = block_size - 1
        # Where no row sees the rows after it, a shorter block says the same in the rows that it has.
        self._may_shorten = all(model.spec.causal)
        self._waiting: list[Tensor] = []

    def start(self, prompt: Tensor) -> None:
        """Forget the sequence before."""
        self._forget()
        if self._device is not None:
            self._device.settle()

    def _forget(self) -> None:
        self.context.truncate(0)
        self._waiting = []

    def observe(self, tokens: Tensor, features: Tensor | None) -> None:
        """Features of committed rows. A few wait for `propose`, which then reads the weights once for all."""
        if features is None:
            raise ValueError("a DFlash draft needs the features it wants")
        self._waiting.append(features)
        if sum(len(piece) for piece in self._waiting) > MAX_ROWS:
            self._project()

    def _project(self) -> None:
        if self._waiting:
            pieces, self._waiting = self._waiting, []
            self.model.project(pieces[0] if len(pieces) == 1 else torch.cat(pieces), self.context)
            if self._device is not None:
                self._device.settle()

    def mark(self) -> Any:
        """See Drafter."""
        self._project()
        return [state.mark() for state in self.context.states]

    def rewind(self, mark: Any) -> None:
        """See Drafter."""
        self._waiting = []
        for state, saved in zip(self.context.states, mark, strict=True):
            state.rewind(saved)
        if self._device is not None:
            self._device.settle()

    @torch.inference_mode()
    def propose(self, pending: Tensor, shape: TreeShape) -> DraftTree:
        """A tree of `shape` from the block's rows 1, 2, ...: row d is the distribution at depth d."""
        if shape == ROOT_ONLY:
            return root_only(pending)
        self._project()
        hidden = self.model.block(pending, self._rows(shape), self.context)[1:]
        logits = self.model.logits(hidden)
        if shape.temperature != 1.0:
            logits = logits / max(shape.temperature, COLDEST)
        width = min(shape.candidates, logits.shape[-1]) if shape.branching else 1
        best, columns = logits.topk(width)
        tokens = self.model.token_ids(columns)
        return build_tree(pending, tokens, best - logits.logsumexp(-1, keepdim=True), shape)

    @property
    def on_device(self) -> bool:
        """Where kernels serve the cache, and a window has room for what a round stores."""
        return self._device is not None and 2 * self.block_size <= MAX_ROWS

    @torch.inference_mode()
    def guess(self, pending: Tensor, shape: TreeShape) -> Guesses:
        """See Drafter."""
        if shape == ROOT_ONLY:
            return no_guesses(pending)
        if self._device is None:
            raise ValueError("this draft proposes on the host")
        rows = self._rows(shape)
        logits = self.model.logits(self.model.block_on_device(pending, rows, self._device)[1:])
        width = min(shape.candidates, logits.shape[-1]) if shape.branching else 1
        top_k = load_top_k(self.model.device)
        values, columns, normaliser = top_k(logits, width, max(shape.temperature, COLDEST))
        return Guesses(self.model.token_ids(columns), values, normaliser)

    def keep(self, features: Tensor | None, path: Tensor, count: Tensor) -> None:
        """See Drafter."""
        if features is None or self._device is None:
            raise ValueError("a DFlash draft needs the features it wants")
        self.model.project_kept(features[path.clamp_min(0)], count, self._device)

    def make_room(self, rows: int) -> None:
        """Project what still waits, and see that windows have room for the block and for what is kept."""
        self._project()
        if self._device is not None:
            self._device.make_room(rows + self.block_size)

    def kept(self, count: int) -> None:
        """See Drafter."""
        if self._device is not None:
            self._device.kept(count)

    def fill_random(self, length: int, seed: int) -> None:
        """See Drafter."""
        self._forget()
        for place, state in enumerate(self.context.states):
            state.fill_random(length, seed + place)
        if self._device is not None:
            self._device.settle()

    def _rows(self, shape: TreeShape) -> int:
        return min(self.block_size, shape.deepest + 1) if self._may_shorten else self.block_size

    @property
    def form(self) -> str:
        """Block and vocabulary."""
        return f"block of {self.block_size} rows, proposes from {self._proposes_from}"

    @property
    def _proposes_from(self) -> str:
        spec = self.spec
        return f"{len(spec.shortlist) if spec.shortlist else spec.vocab} of {spec.vocab} tokens"

    def facts(self) -> dict[str, str]:
        """What its file says, and what was decided where it says nothing."""
        spec = self.spec
        others = sorted({spec.block_size, *spec.block_sizes} - {self.block_size})
        facts = {
            "draft format": spec.architecture,
            "draft layers": f"{spec.layers}, hidden size {spec.hidden}",
            "reads target layers": f"{', '.join(map(str, spec.taps))} (counted from 0)",
            "block": f"{self.block_size} rows"
            + (f"; the file also has {', '.join(map(str, others))}" if others else ""),
            "mask token": str(spec.mask_token),
            "proposes from": self._proposes_from,
            "sees back": by_layer(["all" if window is None else f"{window} tokens" for window in spec.windows]),
            "causal in the block": by_layer(["yes" if causal else "no" for causal in spec.causal]),
        }
        return facts | {f"note {number}": note for number, note in enumerate(spec.notes, start=1)}

    @property
    def nbytes(self) -> int:
        """Bytes of the draft's matrices and caches."""
        return self.model.nbytes + self.context.nbytes


def by_layer(values: list[str]) -> str:
    """One value for each layer, equal neighbours together: "2048 tokens (layers 0-3), all (layer 4)"."""
    if len(set(values)) == 1:
        return values[0]
    pieces: list[str] = []
    first = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[first]:
            layers = f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"
            pieces.append(f"{values[first]} ({layers})")
            first = end
    return ", ".join(pieces)


def block_rows(spec: DraftSpec, asked: int | None) -> int:
    """Rows of a block: the file's, or those asked for where DESIGN section 8 allows it; else a UsageError."""
    if asked is None or asked == spec.block_size:
        return spec.block_size
    if asked in spec.block_sizes and 2 <= asked <= MAX_ROWS:
        return asked
    if all(spec.causal) and 2 <= asked < spec.block_size:
        return asked
    if spec.block_sizes:
        allowed = f"{', '.join(map(str, sorted({spec.block_size, *spec.block_sizes})))} rows"
    elif all(spec.causal):
        allowed = f"2 to {spec.block_size} rows"
    else:
        allowed = f"{spec.block_size} rows alone, as its layers look ahead in the block"
    raise UsageError(
        f"A draft block of {asked} rows was asked for, but {spec.source} can draft {allowed}; leave the block size out."
    )


def open_drafter(request: DrafterRequest) -> DFlashDrafter:
    """Load a draft for the request's target; errors as in `models.dflash`, UsageError for its options."""
    source = request.source
    if source is None:
        raise UsageError("A DFlash draft needs a file; give the path of the draft made for the target.")
    spec = fit(read_spec(source, request.causal, request.tap_shift, request.window), request.target.spec)
    rows = block_rows(spec, request.block)
    weights = Weights(DraftTensors(source), request.target.device, request.dtype, exact=False, layout=request.layout)
    model = build(spec, weights, request.target)
    capacity = request.max_context + -request.max_context % GRANULE
    context = model.new_context(request.kv, capacity)
    return DFlashDrafter(model, context, rows, model.device_context(request.kv, context))
