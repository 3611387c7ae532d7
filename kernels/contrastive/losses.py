"""The public losses over pairs of embeddings: what they compute, and which implementation does.

All functions take this process's rows and compare them with *columns*: the rows of all processes, or, where
``columns`` is omitted, the same rows. Given columns, a result is this process's **share**: the sum over its own
anchors divided by the number of anchors of all processes, so that shares sum to the one-process value, and so do
their gradients. Nothing here knows a process group.

Arithmetic is float64 for float64 embeddings and float32 for all others; ``precision`` says how far the products of
embeddings may fall below that, and the reference makes no use of it.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import plain, reference
from mcsp.kernels.contrastive.blocks import Plan
from mcsp.kernels.contrastive.contrast import contrast
from mcsp.kernels.contrastive.distillation import distillation
from mcsp.kernels.contrastive.problem import Columns, Negatives, Problem, check_values, checked, checked_scale
from mcsp.kernels.dispatch import Impl, Precision

# Rows of similarities that retrieval looks at together.
RETRIEVAL_SIMILARITIES = 2**22


def contrastive_loss(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    scale_P: Tensor,
    *,
    valid_Mn: Tensor | None = None,
    subject_n: Tensor | None = None,
    site_n: Tensor | None = None,
    negatives: Negatives = "all",
    columns: Columns | None = None,
    row_offset: int = 0,
    weight_P: Tensor | None = None,
    precision: Precision = "fp32",
    impl: Impl = "auto",
    workspace_bytes: int | None = None,
    check: bool = False,
) -> Tensor:
    """Symmetric InfoNCE (arXiv 1807.03748, 2103.00020) of each pair (a, b) of embeddings, masked.

    For an anchor i (valid in a and in b) and the direction a -> b, with similarities s_ij = scale <a_i, b_j>::

        l_i = -log( exp s_ii / (exp s_ii + sum_j exp s_ij) ),   j valid in b, of another subject [, of the same site]

    and the loss is the mean of l_i over anchors and over both directions. It is computed as
    softplus(logsumexp_j s_ij - s_ii), which keeps its relative accuracy when the positive dominates.
    A row without a negative contributes 0, and a pair without an anchor is 0.

    Args:
        z_MnD: embeddings, L2-normalised by the caller; values of invalid rows do not matter.
        pairs_P2: indices (a, b) into M.
        scale_P: inverse temperatures; differentiable.
        valid_Mn: bool, default all True.
        subject_n: int64; rows of one subject are never negatives of each other. Default: all differ.
        site_n: int64, needed for ``negatives="within_site"``.
        negatives: "all", or "within_site" to keep the scanner's signature from telling rows apart.
        columns: rows of all processes; the result is then this process's share (see the module).
        row_offset: position of this process's first row within the columns.
        weight_P: factors of the losses, constants; default 1.
        precision: the least that products of embeddings are made with, kernels/README.md has the table.
        impl: "reference" (dense), "blocks" (O(N D) memory, any device), "triton" (the same with fused reading of
            blocks, NVIDIA GPUs), or "auto".
        workspace_bytes: memory for blocks of similarities; default 1 GiB, and on a CPU what its cache holds.
        check: look whether valid embeddings are finite and normalised (the host waits for the device).

    Returns:
        (P,) losses or shares, float32 or float64.

    Raises:
        ValueError: shapes or types that do not fit, a pair index out of range, within_site without sites, embeddings
            that fail ``check``, or an ``impl`` that cannot run here, with the reason.
    """
    problem = checked(z_MnD, pairs_P2, valid_Mn, subject_n, site_n, negatives, columns, row_offset, weight_P)
    scale_P = checked_scale(scale_P, problem)
    if check:
        check_values(problem)
    plan = _planned("contrastive_loss", problem, impl, precision, workspace_bytes)
    problem = problem.zeroed()
    return contrast(problem, scale_P, plan) if plan else reference.contrast(problem, scale_P)


def _planned(
    operation: str, problem: Problem, impl: Impl, precision: Precision, workspace_bytes: int | None
) -> Plan | None:
    """How blocks are made, None for the dense reference."""
    device = problem.z_MnD.device
    size = problem.z_MnD.shape[1] * problem.z_MND.shape[1]
    chosen = dispatch.choose(operation, impl, precision, device, size, lambda: _no_triton(problem.z_MnD))
    if workspace_bytes is not None and workspace_bytes < 1:
        raise ValueError(f"workspace_bytes: expected at least 1, found {workspace_bytes}")
    if chosen == "reference":
        return None
    epilogue = plain
    if chosen == "triton":
        from mcsp.kernels.contrastive import fused as epilogue  # type: ignore[no-redef]
    return Plan(epilogue, precision, workspace_bytes or dispatch.workspace(device))


def _no_triton(z_MnD: Tensor) -> str | None:
    if z_MnD.dtype == torch.float64:
        return f"expected embeddings of 32 bits or fewer, found {z_MnD.dtype}"
    return dispatch.no_package() or dispatch.no_gpu(z_MnD.device)


def relational_distillation(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    scale_P: Tensor,
    *,
    valid_Mn: Tensor | None = None,
    subject_n: Tensor | None = None,
    site_n: Tensor | None = None,
    negatives: Negatives = "all",
    columns: Columns | None = None,
    row_offset: int = 0,
    weight_P: Tensor | None = None,
    precision: Precision = "fp32",
    impl: Impl = "auto",
    workspace_bytes: int | None = None,
    check: bool = False,
) -> Tensor:
    """Each embedding's similarities within the batch teach those of the other embedding of its pair.

    For a row i valid in both embeddings of (a, b) and the columns j valid in both and kept as in
    :func:`contrastive_loss` (never i itself or its subject)::

        t = softmax_j(scale <a_i, a_j>),  s = softmax_j(scale <b_i, b_j>),  l_i = KL(t || s),  no gradient through t

    and the loss is the mean over such rows and over both choices of the teacher; a row without columns contributes 0.
    Distillation by similarity structure follows Relational Knowledge Distillation (arXiv 1904.05068) and SEED
    (arXiv 2101.04731); taking each modality as the other's teacher is our choice. Arguments, result and errors are
    those of :func:`contrastive_loss`; ``scale_P`` is the inverse distillation temperature.
    """
    problem = checked(z_MnD, pairs_P2, valid_Mn, subject_n, site_n, negatives, columns, row_offset, weight_P)
    scale_P = checked_scale(scale_P, problem)
    if check:
        check_values(problem)
    plan = _planned("relational_distillation", problem, impl, precision, workspace_bytes)
    problem = problem.zeroed()
    return distillation(problem, scale_P, plan) if plan else reference.distillation(problem, scale_P)


def retrieval_accuracy(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    *,
    valid_Mn: Tensor | None = None,
    subject_n: Tensor | None = None,
    columns: Columns | None = None,
    row_offset: int = 0,
) -> Tensor:
    """Top-1 accuracy of finding a row's own b among other subjects' b by its a, and the other way round; (P,).

    The mean over anchors and both directions, or this process's share of it. A tie is a miss, so that collapsed
    embeddings score 0; a row without a competitor is a hit. Arguments and errors as in :func:`contrastive_loss`.
    Whole rows of similarities are looked at, as many as fit into a fixed memory.
    """
    problem = checked(z_MnD, pairs_P2, valid_Mn, subject_n, None, "all", columns, row_offset).zeroed()
    n, total = problem.z_MnD.shape[1], problem.z_MND.shape[1]
    step = max(1, RETRIEVAL_SIMILARITIES // (total * len(problem.a)))
    shares: list[Tensor] = []
    for start in range(0, n, step):
        rows = slice(start, start + step)
        part = replace(
            problem,
            z_MnD=problem.z_MnD[:, rows],
            valid_Mn=problem.valid_Mn[:, rows],
            subject_n=problem.subject_n[rows],
            row_offset=row_offset + start,
        )
        shares.append(reference.retrieval(part))
    return torch.stack(shares).sum(0)
