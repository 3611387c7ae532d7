"""Random problems of contrast and distillation, each with something awkward; for the tests beside it."""

from typing import Any

import torch

from mcsp.kernels.contrastive import Columns

ENDS = (-(2**63), 2**63 - 1, -1, 0, 1)  # of int64


def case(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of a loss. All of the kinds below occur among 64 seeds, most of them together with others."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    def often(share: float) -> bool:
        return float(torch.rand((), generator=draw)) < share

    n, width, stack = some(1, 60), some(1, 40), some(2, 6)
    total, offset = (n, 0) if often(0.5) else (n + some(1, 40), some(0, 2))
    z = torch.randn(stack, total, width, generator=draw, dtype=torch.float64)
    z = torch.nn.functional.normalize(z, dim=-1).to(dtype)
    if often(0.3):
        z[:, total // 2] = z[:, 0]  # equal rows
    if often(0.2):
        z = z * 3  # not normalised
    if often(0.3):
        z = z.transpose(0, 1).contiguous().transpose(0, 1)
    pairs = [(some(0, stack), some(0, stack)) for _ in range(some(1, 6))]
    pairs += pairs[:1] * often(0.3)  # one pair twice
    scale = 1 + 19 * torch.rand(len(pairs), generator=draw, dtype=torch.float64)
    p: dict[str, Any] = {"pairs_P2": pairs, "scale_P": scale.to(dtype)}
    if often(0.2):
        p["scale_P"] = p["scale_P"][:1].expand(len(pairs))
    subject = torch.randint(0, max(2, total // 2), (total,), generator=draw)
    if often(0.2):
        subject = torch.tensor(ENDS)[subject % len(ENDS)]
    if often(0.1):
        subject = torch.zeros(total, dtype=torch.int64)
    valid = torch.rand(stack, total, generator=draw) > 0.3 if often(0.6) else None
    if valid is not None and often(0.15):
        valid[:] = False
    if valid is not None:
        z = z.masked_fill(~valid[..., None] & torch.tensor(often(0.5)), torch.nan)
    site = torch.randint(0, 3, (total,), generator=draw)
    if often(0.4):
        weight = torch.randn(len(pairs), generator=draw)
        p["weight_P"] = torch.stack([weight, weight], 1)[:, 0] if often(0.5) else weight[:1].expand(len(pairs))
    rows = slice(offset, offset + n)
    p |= {"negatives": "within_site" if often(0.3) else "all", "z_MnD": z[:, rows], "row_offset": offset}
    p |= {"valid_Mn": None if valid is None else valid[:, rows], "subject_n": subject[rows], "site_n": site[rows]}
    if total != n:
        p["columns"] = Columns(z, valid, subject, site)
    else:
        p["z_MnD"] = z
    return p


def outcome(loss: Any, p: dict[str, Any], dtype: torch.dtype, device: str, **how: Any) -> list[torch.Tensor]:
    """Values, gradients of rows, scales and gathered columns, in float64 on the CPU; embeddings in ``dtype``."""
    p = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in p.items()}
    p["z_MnD"], p["scale_P"] = (p[name].to(dtype).detach() for name in ("z_MnD", "scale_P"))
    wanted = [p["z_MnD"].requires_grad_(), p["scale_P"].requires_grad_()]
    if "columns" in p:
        parts = [x if x is None else x.to(device) for x in vars(p["columns"]).values()]
        wanted.append(parts[0].to(dtype).detach().requires_grad_())
        p["columns"] = Columns(wanted[-1], *parts[1:])
    value = loss(**p, **how)
    weight = torch.arange(1, value.numel() + 1, dtype=value.dtype, device=device)
    grads = torch.autograd.grad((value * weight).sum(), wanted)
    return [x.detach().double().cpu() for x in (value, *grads)]


def expect_float64(p: dict[str, Any], truth: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    """A millionth of the norm; where terms cancel, two roundings of the largest, which its scale bounds.

    Embeddings that are not normalised have logits beyond 20, and float32 knows a logit to a share of its size.
    """
    scale = float(p["scale_P"].abs().max())
    share = 1e-6 * max(1.0, scale * float(p["z_MnD"].nan_to_num().norm(dim=-1).max()) ** 2 / 20)
    for name, exact, other in zip(("value", "rows", "scale", "columns"), truth, found, strict=False):
        term = {"value": 0.0, "scale": 1.0}.get(name, scale)
        error = float((other - exact).norm())
        assert error <= share * float(exact.norm()) + 2.4e-7 * term, f"{name}: {error} of {float(exact.norm())}"
