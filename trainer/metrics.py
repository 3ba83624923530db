"""Loss and top-1, top-5 error of a prediction, ties shared out fairly.

With b classes strictly more probable than the label and e classes equal to it, the label included: top-k credit is
0 if s = k − b is not positive, 1 if e ≤ s, else s/e. Error = 1 − mean credit, so a constant output scores exactly
1/classes. Views are combined by the mean of their softmaxes, and the loss is −log of that mean.
Source: fidelity.md §4 (the released kMultiSoftmaxCost, LogregCostLayer); 2012 paper §4.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """Log of the mean over views of the softmax; (N, classes) or (N, views, classes) to float64 (N, classes).

    float64, and logarithms throughout: no probability underflows to a tie.
    """
    logs = torch.log_softmax(logits.double(), dim=-1)
    return logs if logs.dim() == 2 else logs.logsumexp(1) - math.log(logs.shape[1])


def top_k_credit(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Each sample's credit in 0..1, float64 (N,); `scores` (N, classes) grow with the probability."""
    own = scores.gather(1, labels[:, None])
    better = (scores > own).sum(1)
    equal = (scores == own).sum(1)
    return ((k - better).clamp(min=0).double() / equal).clamp(max=1)


def sums(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Over the samples, float64 (3,): sum of −log probability of the label, of top-1 and of top-5 credits.

    Samples where `valid`, bool (N,), is false count as nothing, whatever their logits are.
    """
    logs = log_probabilities(logits)
    nll = -logs.gather(1, labels[:, None]).squeeze(1)
    figures = torch.stack([nll, top_k_credit(logs, labels, 1), top_k_credit(logs, labels, 5)])
    # where, not a choice of columns: how many there are would have to be read from the device.
    return (figures if valid is None else figures.where(valid, 0.0)).sum(1)
