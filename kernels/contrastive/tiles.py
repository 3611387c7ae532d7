"""Sizes of the tiles of the Triton kernels, from a table by shape and architecture: no tuning while training."""

from typing import Any, NamedTuple


class Tiles(NamedTuple):
    """Sizes of a tile (rows, columns, depth of one product), what a program spans, warps and stages."""

    rows: int
    columns: int
    depth: int
    span: int  # tiles of columns that a program adds up, or numbers of a row's gradient that it makes
    warps: int
    stages: int


# Tiles by what they are for, the type of operands and the architecture: the fields of Tiles.
TABLE = {
    ("sums", "bf16", "sm_90"): (128, 64, 64, 16, 8, 3),
    ("sums", "bf16", "sm_80"): (64, 64, 64, 16, 8, 3),
    ("sums", "bf16", "gfx"): (128, 64, 64, 16, 8, 3),
    ("sums", "fp32", "sm_90"): (64, 64, 32, 16, 4, 3),
    ("sums", "fp32", "sm_80"): (64, 64, 32, 16, 8, 3),
    ("sums", "fp32", "gfx"): (64, 64, 32, 16, 4, 3),
    ("gradient", "bf16", "sm_90"): (64, 64, 64, 128, 8, 3),
    ("gradient", "bf16", "sm_80"): (32, 64, 64, 128, 8, 2),
    ("gradient", "bf16", "gfx"): (64, 64, 64, 128, 8, 1),
    ("gradient", "fp32", "sm_90"): (64, 64, 32, 64, 8, 2),
    ("gradient", "fp32", "sm_80"): (64, 32, 32, 32, 8, 2),
    ("gradient", "fp32", "gfx"): (64, 64, 32, 64, 8, 1),
    ("relations", "bf16", "sm_90"): (64, 64, 64, 16, 8, 3),
    ("relations", "bf16", "sm_80"): (64, 64, 64, 16, 8, 3),
    ("relations", "bf16", "gfx"): (64, 64, 64, 16, 8, 3),
    ("relations", "fp32", "sm_90"): (64, 64, 32, 16, 8, 3),
    ("relations", "fp32", "sm_80"): (64, 64, 32, 16, 8, 3),
    ("relations", "fp32", "gfx"): (64, 64, 32, 16, 8, 3),
    ("relations' gradient", "bf16", "sm_90"): (64, 64, 32, 128, 8, 2),
    ("relations' gradient", "bf16", "sm_80"): (32, 64, 64, 64, 8, 2),
    ("relations' gradient", "bf16", "gfx"): (64, 32, 32, 128, 8, 1),
    ("relations' gradient", "fp32", "sm_90"): (64, 32, 32, 32, 8, 2),
    ("relations' gradient", "fp32", "sm_80"): (32, 32, 32, 32, 8, 2),
    ("relations' gradient", "fp32", "gfx"): (64, 64, 32, 32, 8, 1),
}


def tiles_for(what: str, precision: str, arch: str, width: int, interpreted: bool = False) -> Tiles:
    """Tiles that compile without spilling.

    Args:
        what: "sums" and "gradient" of the contrast, "relations" and "relations' gradient" of distillation.
        precision: of products.
        arch: "sm_90" (and newer), "sm_80" or "gfx".
        width: of embeddings, a multiple of 16.
        interpreted: under the interpreter, where a tile costs the same whatever its size.
    """
    if interpreted:
        return Tiles(32, 64, 128, 128 if "gradient" in what else 2, 4, 1)
    key = (what, "bf16" if precision == "bf16" else "fp32", arch)
    rows, columns, depth, span, warps, stages = TABLE[key]
    if "gradient" in what:
        span = min(span, max(16, 1 << (width - 1).bit_length()))
    return Tiles(rows, columns, depth, span, warps, stages)


def loss_options(hip: bool) -> dict[str, Any]:
    """Compiler options of the kernel that makes losses."""
    # The most that a thread can have. Left alone, ptxas gave this kernel 32 on sm_90 and spilled 8 bytes.
    return {"num_warps": 8} | ({} if hip else {"maxnreg": 255})
