"""Errors with ties, and views combined, as fidelity.md §4."""

import math

import numpy as np
import pytest
import torch
from alexshard.trainer.metrics import log_probabilities, sums, top_k_credit


@pytest.mark.parametrize("k", [1, 5])
def test_a_constant_output_earns_k_classes_share_for_every_label(k):
    credit = top_k_credit(torch.zeros(1000, 1000), torch.arange(1000), k)

    assert credit.unique().tolist() == [k / 1000]


@pytest.mark.parametrize(
    ("scores", "label", "top1", "top5"),
    [
        ([9, 8, 7, 6, 5, 4, 3], 0, 1, 1),
        ([9, 8, 7, 6, 5, 4, 3], 4, 0, 1),
        ([9, 8, 7, 6, 5, 4, 3], 5, 0, 0),
        ([9, 9, 7, 6, 5, 4, 3], 1, 1 / 2, 1),
        ([9, 8, 7, 5, 5, 5, 3], 4, 0, 2 / 3),
        ([9, 8, 7, 6, 4, 4, 4], 6, 0, 1 / 3),
        ([2, 1, 0], 2, 0, 1),
    ],
)
def test_credit_shares_ties_by_the_rule(scores, label, top1, top5):
    row, labels = torch.tensor([scores], dtype=torch.float32), torch.tensor([label])

    assert top_k_credit(row, labels, 1).item() == pytest.approx(top1, abs=1e-15)
    assert top_k_credit(row, labels, 5).item() == pytest.approx(top5, abs=1e-15)


def test_views_are_averaged_as_softmaxes_not_as_logits():
    logits = torch.randn(4, 10, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    exponentials = np.exp(logits.numpy())
    mean = (exponentials / exponentials.sum(-1, keepdims=True)).mean(1)

    np.testing.assert_allclose(log_probabilities(logits).exp(), mean, rtol=1e-12)


def test_the_loss_is_finite_and_untied_where_probabilities_underflow():
    logits = torch.tensor([[2000.0, 0.0, -1000.0]])

    nll, top1, _ = sums(logits, torch.tensor([2])).tolist()

    assert nll == 3000.0
    assert top1 == 0.0
    assert top_k_credit(log_probabilities(logits), torch.tensor([1]), 2).item() == 1.0


def test_sums_add_up_over_the_batch():
    labels = torch.tensor([0, 1, 2, 3])

    assert sums(torch.zeros(4, 8), labels).tolist() == pytest.approx([4 * math.log(8), 4 / 8, 4 * 5 / 8])


def test_what_is_not_valid_counts_as_nothing_not_even_as_no_number():
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4])
    valid = torch.tensor([True, False, True, True, False])
    spoiled = torch.where(valid[:, None], logits, math.nan)

    assert sums(spoiled, labels, valid).tolist() == pytest.approx(sums(logits[valid], labels[valid]).tolist())
    assert sums(spoiled, labels, torch.zeros(5, dtype=torch.bool)).tolist() == [0, 0, 0]
