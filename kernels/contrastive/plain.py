"""What is done with each block of similarities, in plain PyTorch; ``fused`` does it in one pass.

Every function may overwrite the blocks it is given. A maximum of -inf stands for a row or column that is compared with
nothing; its sums are 0. A reference of +inf makes a row's exponentials 0.

Shape letters: g jobs, r rows and c columns of a block; S = 2 sides of a pair.
"""

import torch
from torch import Tensor

from mcsp.kernels.contrastive.blocks import Compared, finite

Sums = tuple[Tensor, list[Tensor]]  # the maximum, and sums of exponentials relative to it


def contrast_sums(x_grc: Tensor, scale_g: Tensor, compared: Compared, both: bool) -> list[Sums]:
    """Of each row, and with ``both`` of each column: the largest logit, and the sum of exp(logit - largest)."""
    _logits(x_grc, scale_g, compared)
    found: list[Sums] = []
    for over in (2, 1)[: 1 + both]:
        top = x_grc.amax(over)
        e_grc = (x_grc - finite(top).unsqueeze(over)).exp_()
        found.append((top, [e_grc.sum(over)]))
    return found


def contrast_gradient(
    x_grc: Tensor, scale_g: Tensor, compared: Compared, sides: list[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> Tensor:
    """Gradient of the logits in ``dtype``: the sum over sides of exp(logit - reference) share, (g, r), then (g, c)."""
    _logits(x_grc, scale_g, compared)
    reference_gr, share_gr = sides[0]
    if len(sides) == 1:
        return x_grc.sub_(reference_gr[..., None]).exp_().mul_(share_gr[..., None]).to(dtype)
    grad_grc = (x_grc - reference_gr[..., None]).exp_().mul_(share_gr[..., None])
    reference_gc, share_gc = sides[1]
    return grad_grc.addcmul_(x_grc.sub_(reference_gc[:, None]).exp_(), share_gc[:, None]).to(dtype)


def relation_sums(x_Sgrc: Tensor, scale_g: Tensor, compared: Compared) -> Sums:
    """Of each row of both sides a and b, (2, g, r): the largest logit, sums of e = exp(logit - largest), e (a - b)."""
    difference_grc = torch.sub(*x_Sgrc).mul_(scale_g[:, None, None])
    _logits(x_Sgrc, scale_g, compared)
    top_Sgr = x_Sgrc.amax(3)
    e_Sgrc = x_Sgrc.sub_(finite(top_Sgr)[..., None]).exp_()
    return top_Sgr, [e_Sgrc.sum(3), e_Sgrc.mul_(difference_grc).sum(3)]


def relation_gradient(
    x_Sgrc: Tensor,
    scale_g: Tensor,
    compared: Compared,
    reference_Sgr: Tensor,
    share_Sgr: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """In ``dtype``, exp(a - reference_a) share_a - exp(b - reference_b) share_b, and its opposite."""
    _logits(x_Sgrc, scale_g, compared)
    x_Sgrc.sub_(reference_Sgr[..., None]).exp_().mul_(share_Sgr[..., None])
    x_Sgrc[0].sub_(x_Sgrc[1])
    torch.neg(x_Sgrc[0], out=x_Sgrc[1])
    return x_Sgrc.to(dtype)


def _logits(x: Tensor, scale_g: Tensor, compared: Compared) -> None:
    """Similarities (..., g, r, c) become logits, -inf where nothing is compared."""
    x.mul_(scale_g[:, None, None])
    dropped = compared.dropped()
    if dropped is not None:
        x.masked_fill_(dropped, -torch.inf)
