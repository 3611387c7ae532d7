"""Measures of embeddings without labels: identification of people, effective rank, site accuracy.

Everything is of windows of N people, one each, in float64. Where something is predicted, the person that it is
predicted for takes no part in the fit: ridge regression, of which the errors of people left out are known in closed
form (Allen's PRESS, Technometrics 16:125, 1974; blocks of rows as in Stone, J R Stat Soc B 36:111, 1974).

Shape letters: N people, D width of an embedding, E numbers of a target, R rows of a fit.
"""

import torch
from torch import Tensor

# Of the mean eigenvalue of the centred Gram matrix: the same strength whatever the width and scale of an embedding.
_RIDGE = 1.0
_LEAST_OF_SITE = 3  # people


def effective_rank(x_ND: Tensor) -> float:
    """How many directions the rows use: exponential of the entropy of normalised singular values, 1 to min(N, D).

    1 where all rows are alike. After Roy and Vetterli (EUSIPCO 2007); as a measure of training without labels, RankMe
    (arXiv 2210.02885).
    """
    value_K = torch.linalg.svdvals(x_ND.double())
    share_K = value_K / value_K.sum().clamp_min(1e-300)
    return float(torch.special.entr(share_K).sum().exp())


def identification(first_ND: Tensor, second_ND: Tensor) -> float:
    """How often the most similar embedding of the other halves is of the same person; by chance in 1 of N.

    By cosine, without the mean over people, from either half to the other.
    """
    sides = [x_ND.double() - x_ND.double().mean(0) for x_ND in (first_ND, second_ND)]
    a_ND, b_ND = (torch.nn.functional.normalize(x_ND, dim=1) for x_ND in sides)
    similarity_NN = a_ND @ b_ND.T
    own_N = torch.arange(len(a_ND), device=a_ND.device)
    hits = [(similarity.argmax(1) == own_N).double().mean() for similarity in (similarity_NN, similarity_NN.T)]
    return float(sum(hits) / 2)


def half_error(h_2ND: Tensor, target_2NE: Tensor) -> float:
    """Squared error of predicting the other half of a window from h, relative to predicting the mean over people.

    1 where h says no more of a person than the mean does, 0 where it says everything; it may exceed 1.

    Args:
        h_2ND: embeddings of both halves of each person's window.
        target_2NE: what is measured in each half.
    """
    people = h_2ND.shape[1]
    h_RD, target_RE = h_2ND.double().flatten(0, 1), target_2NE.double().flip(0).flatten(0, 1)
    person_R = torch.arange(people, device=h_RD.device).repeat(2)
    error = _left_out(_smoother(h_RD), target_RE, person_R)
    of_mean = _left_out(_smoother(torch.zeros_like(h_RD)), target_RE, person_R)
    return float(error.square().sum() / of_mean.square().sum())


def site_accuracy(x_ND: Tensor, site_N: Tensor) -> float | None:
    """Accuracy of the site of a person left out, mean over sites; chance is 1 / number of sites.

    Sites of fewer than three people are left out; None where fewer than two remain.
    """
    names, site_N = site_N.unique(return_inverse=True)
    count_S = torch.bincount(site_N, minlength=len(names))
    large_N = (count_S >= _LEAST_OF_SITE)[site_N]
    x_ND, (names, site_N) = x_ND[large_N].double(), site_N[large_N].unique(return_inverse=True)
    if len(names) < 2:
        return None
    member_NS = torch.nn.functional.one_hot(site_N).double()
    share_S = member_NS.mean(0)
    # Each site's column in units of its own spread: a large site is not told more readily than a small one.
    target_NS = (member_NS - share_S) / (share_S * (1 - share_S)).sqrt()
    told_NS = target_NS - _left_out(_smoother(x_ND), target_NS, torch.arange(len(x_ND), device=x_ND.device))
    hit_N = (told_NS.argmax(1) == site_N).double()
    return float(((member_NS * hit_N[:, None]).sum(0) / member_NS.sum(0)).mean())


def _smoother(x_RD: Tensor) -> Tensor:
    """``S`` of the predictions ``S y`` of ridge regression with an intercept, (R, R)."""
    rows = len(x_RD)
    centred_RD = x_RD - x_RD.mean(0)
    gram_RR = centred_RD @ centred_RD.T
    strength = (_RIDGE * gram_RR.diagonal().mean()).clamp_min(1e-300)
    eye_RR = torch.eye(rows, dtype=x_RD.dtype, device=x_RD.device)
    return torch.linalg.solve(gram_RR + strength * eye_RR, gram_RR) + 1 / rows


def _left_out(smoother_RR: Tensor, y_RE: Tensor, person_R: Tensor) -> Tensor:
    """Errors of rows whose person took no part in the fit, (R, E)."""
    residual_RE = y_RE - smoother_RR @ y_RE
    by_person = person_R.argsort(stable=True).view(int(person_R.max()) + 1, -1)  # equally many rows of each
    block_Nbb = smoother_RR[by_person[:, :, None], by_person[:, None]]
    eye_bb = torch.eye(by_person.shape[1], dtype=y_RE.dtype, device=y_RE.device)
    out_RE = torch.empty_like(y_RE)
    out_RE[by_person.flatten()] = torch.linalg.solve(eye_bb - block_Nbb, residual_RE[by_person]).flatten(0, 1)
    return out_RE
