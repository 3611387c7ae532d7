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


def without_itself(p: dict[str, Any]) -> dict[str, Any]:
    """No pair of an embedding with itself: its distillation is 0, because both sides cancel."""
    stack = len(p["z_MnD"])
    return p | {"pairs_P2": [(a, (a + 1) % stack if a == b else b) for a, b in p["pairs_P2"]]}


def moved(loss: Any, p: dict[str, Any], seed: int) -> list[torch.Tensor]:
    """The outcome in float64, where rounding to float32 has moved each input; both sides of each pair on their own.

    Else the roundings of an embedding that is on both sides would cancel, which those of an implementation do not.
    """
    draw = torch.Generator().manual_seed(seed)

    def moved_input(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 2**-24 * (2 * torch.rand(x.shape, generator=draw, dtype=torch.float64) - 1))

    sides = [i for pair in p["pairs_P2"] for i in pair]
    columns = p.get("columns") or Columns(p["z_MnD"], p["valid_Mn"], p["subject_n"], p["site_n"])
    z, scale = (p[name].double().detach().requires_grad_() for name in ("z_MnD", "scale_P"))
    wanted = [z, scale]
    if "columns" in p:
        wanted.append(columns.z_MND.double().detach().requires_grad_())
    valid_Mn, valid_MN = (None if v is None else v[sides] for v in (p["valid_Mn"], columns.valid_MN))
    apart = Columns(
        moved_input(wanted[-1 if "columns" in p else 0][sides]), valid_MN, columns.subject_N, columns.site_N
    )
    pairs = [(2 * k, 2 * k + 1) for k in range(len(p["pairs_P2"]))]
    own = {"z_MnD": moved_input(z[sides]), "scale_P": moved_input(scale), "valid_Mn": valid_Mn, "pairs_P2": pairs}
    value = loss(**p | own | {"columns": apart}, impl="reference")
    weight = torch.arange(1, value.numel() + 1, dtype=value.dtype)
    return [x.detach() for x in (value, *torch.autograd.grad((value * weight).sum(), wanted))]


def expect_float64(
    loss: Any, p: dict[str, Any], truth: list[torch.Tensor], found: list[torch.Tensor], gpu: bool = False
) -> None:
    """A millionth of the norm. Where the truth is 0, eight times what rounding of the inputs moves in float64.

    A truth is 0 where all its terms cancel: of seed 3, whose two rows are equal. Eight operations round one after the
    other: similarity, scale, less the maximum, exponential, sum, share, product with embeddings, total. A GPU's
    exponentials are less exact, so it may be eight times that everywhere.
    """
    zero = [float(x.norm()) <= 1e-14 * max(1.0, float(truth[0].norm())) for x in truth]
    rounded = [moved(loss, p, seed) for seed in range(4 * (gpu or any(zero)))]
    for i, name in enumerate(("value", "rows", "scale", "columns")[: len(truth)]):
        error, bound = float((found[i] - truth[i]).norm()), 1e-6 * float(truth[i].norm())
        if gpu or zero[i]:
            bound = max(bound, 8 * max(float((other[i] - truth[i]).norm()) for other in rounded))
        assert error <= bound, f"{name}: {error} from {float(truth[i].norm())}, expected at most {bound}"
