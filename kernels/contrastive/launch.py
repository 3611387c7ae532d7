"""What surrounds the Triton kernels of ``fused``: memory, grids, autograd; seven launches for a whole contrast.

All of it stays on the device: no value is read back, and no shape depends on one.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs, Q = 2 P sides (side 2 p
is the first embedding of pair p as anchor, 2 p + 1 the second), J jobs: products of rows with columns.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.fused import (
    INTERPRETED,
    dot_precision,
    grad_tiles,
    prepare,
    sum_tiles,
)
from mcsp.kernels.contrastive.fused_losses import add_parts, close_losses, close_scales
from mcsp.kernels.contrastive.problem import Problem
from mcsp.kernels.contrastive.tiles import Tiles, loss_options, tiles_for

# Rows of a block where rows are not multiplied.
BLOCK = 32 if INTERPRETED else 64
WIDEST = 4096


class Operands(NamedTuple):
    """Embeddings as the kernels multiply them, all rows of all processes, and what else the kernels begin with."""

    z_MND: Tensor
    valid_MN: Tensor
    key_2N: Tensor
    stack: int
    n: int
    total: int
    offset: int
    width: int


def unavailable(problem: Problem) -> str | None:
    """Why the kernels cannot run on these embeddings; None where they can."""
    z = problem.z_MnD
    if z.dtype == torch.float64:
        return f"expected embeddings of 32 bits or fewer, found {z.dtype}"
    if z.shape[2] > WIDEST:
        return f"expected a width of at most {WIDEST}, found {z.shape[2]}"
    if INTERPRETED:
        return None
    if z.device.type != "cuda":
        return f"expected embeddings on a CUDA device, found {z.device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(z.device) < (8, 0):
        return f"expected compute capability 8.0 or newer, found {torch.cuda.get_device_capability(z.device)}"
    return None


def contrast(problem: Problem, scale_P: Tensor, precision: str) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.contrastive_loss`; (P,)."""
    loss_P: Tensor = _Fused.apply(problem.z_MnD, problem.z_MND, scale_P, problem, precision)
    return loss_P


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem, precision: str) -> Tensor:
        operands = operands_of(problem, precision)
        loss_P, *saved = _losses(problem, operands, scale_P, precision)
        ctx.save_for_backward(z_MnD, z_MND, scale_P, *saved)
        ctx.problem, ctx.precision, ctx.operands = problem, precision, operands
        return loss_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        _, _, scale_P, exact_Q, pull_Qn, base_Qn, diagonal_Pn, slope_P = ctx.saved_tensors
        problem, o = ctx.problem, ctx.operands
        tiles = tiles_of(o, ctx.precision, "gradient")
        entries, first = _entries(tuple(problem.a), tuple(problem.b), o.stack, problem.own, o.z_MND.device)
        rows = torch.empty_like(problem.z_MnD, memory_format=torch.contiguous_format)
        columns = rows if problem.own else torch.empty_like(problem.z_MND, memory_format=torch.contiguous_format)
        row_tiles, parts = -(-o.n // tiles.rows), 1 if problem.own else 2
        part = scale_P.new_empty((len(problem.a), parts * row_tiles), dtype=torch.float32)
        grid = (row_tiles + (0 if problem.own else -(-o.total // tiles.rows)), o.stack, -(-o.width // tiles.span))
        grad_tiles[grid](
            o.z_MND, entries, first, scale_P, exact_Q, o.valid_MN, o.key_2N, pull_Qn, base_Qn, diagonal_Pn, grad_P,
            rows, columns, part, o.n, o.total, o.offset, row_tiles, o.width, grad_P.stride(0),
            **constants(problem, o, ctx.precision, tiles),
        )  # fmt: skip
        scale = torch.empty_like(scale_P)
        close_scales[(len(problem.a),)](
            grad_P, slope_P, part, scale, part.shape[1], grad_P.stride(0), BM=BLOCK, SLOPED=True
        )
        return rows, None if problem.own else columns, scale, None, None


def _losses(problem: Problem, o: Operands, scale_P: Tensor, precision: str) -> list[Tensor]:
    """Losses, which sides are exact, and per row what the backward pass needs; see ``close_losses``."""
    tiles, own, pairs = tiles_of(o, precision, "sums"), problem.own, len(problem.a)
    a, b, device = tuple(problem.a), tuple(problem.b), o.z_MND.device
    pair_P2, table_J3 = pairs_of(a, b, device), _jobs(a, b, own, device)
    jobs, blocks = len(table_J3), -(-o.n // BLOCK)
    spans, bands = -(-o.total // (tiles.columns * tiles.span)), -(-o.n // tiles.rows)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return o.z_MND.new_empty(shape, dtype=dtype)

    row_JSn, column_JBN = new(jobs, spans, o.n), new(jobs, bands, o.total) if own else new(1)
    sum_Qn, cosine_Pn, flag_QB = new(2 * pairs, o.n), new(pairs, o.n), new(2 * pairs, blocks, dtype=torch.int32)
    for exact in (False, True):
        # Of the second launch, programs of jobs without a flag leave at once, and their parts as they were.
        sum_tiles[(bands, spans, jobs)](
            o.z_MND, table_J3, scale_P, flag_QB, o.valid_MN, o.key_2N, row_JSn, column_JBN, o.n, o.total, o.offset,
            blocks * (2 if own else 1), OWN=own, EXACT=exact,
            **constants(problem, o, precision, tiles),
        )  # fmt: skip
        if not exact:
            add_parts[(blocks, 2 * pairs)](
                o.z_MND, pair_P2, o.valid_MN, row_JSn, column_JBN, sum_Qn, flag_QB, cosine_Pn, o.n, o.total, o.offset,
                spans, bands, D=o.z_MND.shape[2], BM=BLOCK, BD=64, OWN=own, UPCAST=INTERPRETED,
            )  # fmt: skip
    weight_P = problem.weight_P
    loss_P, exact_Q, slope_P = new(pairs), new(2 * pairs, dtype=torch.int32), new(pairs)
    pull_Qn, base_Qn, diagonal_Pn = new(2 * pairs, o.n), new(2 * pairs, o.n), new(pairs, o.n)
    close_losses[(pairs,)](
        pair_P2, scale_P, scale_P if weight_P is None else weight_P, o.valid_MN, row_JSn, column_JBN, sum_Qn, flag_QB,
        cosine_Pn, loss_P, exact_Q, pull_Qn, base_Qn, diagonal_Pn, slope_P, o.n, o.total, o.offset, spans, bands,
        blocks, BM=4 * BLOCK, OWN=own, WEIGHTED=weight_P is not None, **loss_options(torch.version.hip is not None),
    )  # fmt: skip
    return [loss_P, exact_Q, pull_Qn, base_Qn, diagonal_Pn, slope_P]


def operands_of(problem: Problem, precision: str) -> Operands:
    """Embeddings rounded to what they are multiplied as, in rows of a multiple of 16 numbers; one launch."""
    z_MND = problem.z_MND.contiguous()
    stack, total, width = z_MND.shape
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    operand = z_MND.new_empty((stack, total, width + -width % 16), dtype=dtype)
    key_2N = torch.empty((2, total), dtype=torch.int32, device=z_MND.device)
    valid_MN = problem.valid_MN.contiguous().view(torch.uint8)
    subject_N = problem.subject_N.contiguous()
    site_N = subject_N if problem.site_N is None else problem.site_N.contiguous()
    prepare[(-(-total // BLOCK), stack)](
        z_MND, valid_MN, subject_N, site_N, operand, key_2N, total, width,
        D=operand.shape[2], BM=BLOCK, BD=64, SITES=problem.site_N is not None, UPCAST=INTERPRETED,
    )  # fmt: skip
    n = problem.z_MnD.shape[1]
    return Operands(operand, valid_MN, key_2N, stack, n, total, problem.row_offset, width)


@cache
def pairs_of(a: tuple[int, ...], b: tuple[int, ...], device: torch.device) -> Tensor:
    """The pairs (P, 2) on the device; kept, so that no later call copies anything to it."""
    return torch.tensor(list(zip(a, b, strict=True)), device=device)


@cache
def _jobs(a: tuple[int, ...], b: tuple[int, ...], own: bool, device: torch.device) -> Tensor:
    """Left, right and pair of each job (J, 3), on the device."""
    pairs = enumerate(zip(a, b, strict=True))
    jobs = [(x, y, p) for p, pair in pairs for x, y in ((pair,) if own else (pair, pair[::-1]))]
    return torch.tensor(jobs, device=device)


@cache
def _entries(
    a: tuple[int, ...], b: tuple[int, ...], stack: int, own: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What each embedding's gradient is made of, for own rows and then for columns; see ``grad_tiles``."""
    entries: list[list[tuple[int, ...]]] = [[] for _ in range(2 * stack)]
    for p, (x, y) in enumerate(zip(a, b, strict=True)):
        if own:
            entries[x].append((y, p, 2 * p, 2 * p + 1, p))
            entries[y].append((x, p, 2 * p + 1, 2 * p, -1))
        else:
            entries[x].append((y, p, 2 * p, -1, 2 * p))
            entries[y].append((x, p, 2 * p + 1, -1, 2 * p + 1))
            entries[stack + y].append((x, p, -1, 2 * p, -1))
            entries[stack + x].append((y, p, -1, 2 * p + 1, -1))
    first = torch.tensor([0, *map(len, entries)], device=device).cumsum(0)
    return torch.tensor([entry for some in entries for entry in some], device=device), first


def tiles_of(operands: Operands, precision: str, what: str) -> Tiles:
    """The configuration for these embeddings and this device."""
    device = operands.z_MND.device
    arch = "sm_80"
    if torch.version.hip is not None:
        arch = "gfx"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        arch = "sm_90"
    return tiles_for(what, precision, arch, operands.z_MND.shape[2], INTERPRETED)


def constants(problem: Problem, operands: Operands, precision: str, tiles: Tiles) -> dict[str, Any]:
    """What kernels that multiply are compiled for."""
    return {
        "D": operands.z_MND.shape[2],
        "BM": tiles.rows,
        "BC": tiles.columns,
        "BD": tiles.depth,
        "SPAN": tiles.span,
        "SITES": problem.site_n is not None,
        "PRECISION": dot_precision(precision, torch.version.hip is not None),
        "UPCAST": INTERPRETED,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,
    }
