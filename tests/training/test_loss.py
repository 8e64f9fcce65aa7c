"""The chunked loss against autograd over all logits, and the weightings by their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional

from draftwood.training import loss as losses
from draftwood.training.loss import WEIGHTINGS, HeadLoss, decay, dpace


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden, head = torch.randn(13, 5, 16), torch.randn(97, 16)
    labels = torch.randint(97, (13, 5))
    labels[:4] = (hidden[:4] @ head.T).argmax(-1)
    valid = torch.arange(5) < torch.randint(0, 6, (13, 1))
    return hidden, head, labels, valid


@pytest.mark.parametrize(("name", "strength"), [("decay", 7.0), ("dpace", 0.5), ("dpace", 0.0)])
def test_value_and_gradient_equal_autograd(name: str, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 20)  # four blocks at once, so 13 take four chunks
    hidden, head, labels, valid = problem()
    weighting = WEIGHTINGS[name](strength)
    ours = hidden.clone().requires_grad_()
    result = HeadLoss(head, weighting)(ours, labels, valid)
    (3 * result.value).backward()
    plain = hidden.clone().requires_grad_()
    surprise = functional.cross_entropy((plain @ head.T).flatten(0, 1), labels.flatten(), reduction="none")
    surprise = surprise.view(labels.shape)
    q = torch.exp(-surprise.detach())
    expected = (surprise * weighting.weights(q, valid)).sum() / weighting.divisor(valid)
    (3 * expected).backward()
    torch.testing.assert_close(result.value, expected)
    torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(result.q, q)
    assert torch.equal(result.right, ((plain @ head.T).argmax(-1) == labels) & valid)
    assert result.right.any() and not result.right.all()


def test_decay_weights() -> None:
    valid = torch.tensor([[True] * 15, [True] * 3 + [False] * 12])
    weights = decay(7.0).weights(torch.rand(2, 15), valid)
    assert weights[0].sum() == pytest.approx(6.63, abs=0.01) and weights[0, -1] == pytest.approx(0.135, abs=1e-3)
    assert weights[1, 3:].sum() == 0 and decay(7.0).divisor(valid) == pytest.approx(float(weights.sum()))


def test_dpace_without_floor_has_the_gradient_of_the_expected_round() -> None:
    """d(-tau)/dz for tau = sum over j of prod over i <= j of q_i (SPEC-draft-training section 7)."""
    hidden, head, labels, valid = problem()
    ours = hidden.clone().requires_grad_()
    HeadLoss(head, dpace(0.0))(ours, labels, valid).value.backward()
    plain = hidden.clone().requires_grad_()
    logits = torch.log_softmax(plain @ head.T, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    q = logits.exp().where(valid, 0.0)
    tau = q.cumprod(-1).sum() / valid.any(-1).sum()
    (-tau).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)
