"""Both forms of a teacher against the engine: features, hidden rows and steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from draftwood.batch import ForwardInput
from draftwood.cache.registry import kv_pair
from draftwood.layers.weights import Weights
from draftwood.models.registry import architecture
from draftwood.training.packing import pack
from draftwood.training.teachers import open_teacher
from tests.training.small import document, target_file

CASES = [("l-b.Q4_1", "dense"), ("q3-b.Q4_K_M", "dense"), ("l-b.Q4_1", "engine"), ("q35-c.Q4_K_M", "engine")]

SERVED = {"dense": "float32", "engine": "auto"}
"""The dtype of the engine that a form equals on a CPU."""

STEP_TOLERANCE = {"dense": 1e-5, "engine": 5e-2}
"""On a CPU the engine reads prompts and decodes with two weight forms: bfloat16 products and int4 ones."""


@pytest.mark.parametrize(("name", "form"), CASES)
def test_reads_packed_documents_as_the_engine_reads_each(name: str, form: str) -> None:
    source = target_file(name)
    taught = open_teacher(source, "cpu", form)
    module = architecture(source)
    model = module.build(module.read_spec(source), Weights(source, "cpu", SERVED[form]))
    documents = [document(70, (0, 70), 1), document(40, (0, 40), 2)]
    rows = pack(documents, 128)
    taps = (0, 2)
    features, hidden = taught.read(rows.take(torch.arange(1), "cpu"), taps)
    starts = rows.start[0].unique().tolist()
    for tokens, _ in documents:
        ids = torch.from_numpy(tokens)
        at = next(start for start in starts if rows.tokens[0, start : start + len(ids)].tolist() == ids.tolist())
        sequence = model.new_sequence(kv_pair("f32"), 128)
        output = model.prefill(ForwardInput(ids, torch.arange(len(ids)), wanted=taps), sequence)
        assert output.features is not None
        for found, expected in ((features, output.features), (hidden, output.hidden)):
            error = (found[0, at : at + len(ids)] - expected).norm() / expected.norm()
            assert error < 1e-5


@pytest.mark.parametrize(("name", "form"), CASES)
def test_steps_of_uneven_sequences_equal_reading(name: str, form: str) -> None:
    taught = open_teacher(target_file(name), "cpu", form)
    documents = [document(length, (0, length), length)[0] for length in (9, 5, 7)]
    decoder = taught.decoder(3, 64)
    for step in range(9):
        index = [min(step, len(ids) - 1) for ids in documents]
        tokens = torch.tensor([int(ids[i]) for ids, i in zip(documents, index, strict=True)])
        logits = decoder.step(tokens, torch.tensor(index)).clone()
    for row, ids in enumerate(documents):
        rows = pack([(ids, np.zeros(len(ids), np.uint8))], 64).take(torch.arange(1), "cpu")
        hidden = taught.read(rows, (0,))[1][0, len(ids) - 1]
        expected = hidden @ taught.head.T
        assert (logits[row] - expected).norm() / expected.norm() < STEP_TOLERANCE[form]


def test_a_place_can_be_used_again() -> None:
    for form in ("dense", "engine"):
        taught = open_teacher(target_file(), "cpu", form)
        decoder = taught.decoder(1, 32)
        first = [decoder.step(torch.tensor([t]), torch.tensor([i])).clone() for i, t in enumerate((7, 8, 9))]
        decoder.step(torch.tensor([50]), torch.tensor([0]))
        again = [decoder.step(torch.tensor([t]), torch.tensor([i])).clone() for i, t in enumerate((7, 8, 9))]
        for before, after in zip(first, again, strict=True):
            torch.testing.assert_close(after, before)
