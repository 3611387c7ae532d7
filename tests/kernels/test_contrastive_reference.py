"""The contrastive reference against plain loops over rows, in float64.

Covers: kernels/contrastive/reference.py
"""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcsp.kernels.contrastive import Columns, contrastive_loss, relational_distillation, retrieval_accuracy

PAIRS = [(0, 1), (1, 2), (0, 2)]
LOSSES = [contrastive_loss, relational_distillation]


def problem(n: int, width: int = 8, seed: int = 0, subjects: int | None = None) -> dict:
    """Three embeddings of n rows, with invalid rows, repeated subjects and three sites."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(3, n, width, generator=draw, dtype=torch.float64)
    subject = torch.randint(0, subjects or max(2, n // 2), (n,), generator=draw)
    return {
        "z_MnD": torch.nn.functional.normalize(z, dim=-1),
        "pairs_P2": PAIRS,
        "scale_P": torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64),
        "valid_Mn": torch.rand(3, n, generator=draw) > 0.25,
        "subject_n": subject,
        "site_n": subject % 3,  # a subject belongs to one site
    }


def kept(p: dict, i: int, j: int, embeddings: tuple[int, ...], negatives: str) -> bool:
    other = p["subject_n"][i] != p["subject_n"][j]
    same_site = negatives == "all" or p["site_n"][i] == p["site_n"][j]
    return bool(other and same_site and all(p["valid_Mn"][m, j] for m in embeddings))


def plain_contrast(p: dict, negatives: str) -> list[float]:
    losses = []
    for (a, b), scale in zip(p["pairs_P2"], p["scale_P"].tolist(), strict=True):
        terms = []
        for i in range(p["z_MnD"].shape[1]):
            if not (p["valid_Mn"][a, i] and p["valid_Mn"][b, i]):
                continue
            for left, right in ((a, b), (b, a)):
                s = [scale * float(p["z_MnD"][left, i] @ row) for row in p["z_MnD"][right]]
                rivals = [math.exp(s[j] - s[i]) for j in range(len(s)) if kept(p, i, j, (right,), negatives)]
                terms.append(math.log1p(sum(rivals)))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


def plain_distillation(p: dict, negatives: str) -> list[float]:
    losses = []
    for (a, b), scale in zip(p["pairs_P2"], p["scale_P"].tolist(), strict=True):
        terms = []
        for i in range(p["z_MnD"].shape[1]):
            if not (p["valid_Mn"][a, i] and p["valid_Mn"][b, i]):
                continue
            columns = [j for j in range(p["z_MnD"].shape[1]) if kept(p, i, j, (a, b), negatives)]
            for teacher, student in ((a, b), (b, a)):
                rows = []
                for m in (teacher, student):
                    e = [math.exp(scale * (float(p["z_MnD"][m, i] @ p["z_MnD"][m, j]) - 1)) for j in columns]
                    rows.append([x / sum(e) for x in e])
                terms.append(sum(t * math.log(t / s) for t, s in zip(*rows, strict=True)))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


PLAIN = {contrastive_loss: plain_contrast, relational_distillation: plain_distillation}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("negatives", ["all", "within_site"])
@pytest.mark.parametrize("n", [1, 2, 33])
def test_equals_loops_over_rows(loss, negatives: str, n: int) -> None:
    p = problem(n)
    expected = torch.tensor(PLAIN[loss](p, negatives), dtype=torch.float64)
    torch.testing.assert_close(loss(**p, negatives=negatives), expected, rtol=1e-11, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 9),
    width=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    subjects=st.integers(1, 9),
    scale=st.floats(1, 100),
    loss=st.sampled_from(LOSSES),
    negatives=st.sampled_from(["all", "within_site"]),
)
def test_any_shape_equals_loops_over_rows(n, width, seed, subjects, scale, loss, negatives) -> None:
    p = problem(n, width, seed, subjects) | {"scale_P": torch.full((3,), scale, dtype=torch.float64)}
    p["z_MnD"].requires_grad_()
    p["scale_P"].requires_grad_()
    out = loss(**p, negatives=negatives)
    with torch.no_grad():
        torch.testing.assert_close(out.tolist(), PLAIN[loss](p, negatives), rtol=1e-10, atol=1e-11)
    out.sum().backward()
    assert p["z_MnD"].grad.isfinite().all()
    assert p["scale_P"].grad.isfinite().all()
    assert (p["z_MnD"].grad[~p["valid_Mn"]] == 0).all()


@pytest.mark.parametrize("negatives", ["all", "within_site"])
def test_gradients_of_the_contrast(negatives: str) -> None:
    p = problem(7, 4)
    z, scale = p.pop("z_MnD").requires_grad_(), torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64, requires_grad=True)
    p.pop("scale_P")

    def f(z: Tensor, scale: Tensor) -> Tensor:
        return contrastive_loss(z, scale_P=scale, negatives=negatives, **p)

    assert torch.autograd.gradcheck(f, (z, scale))


@pytest.mark.parametrize(("teacher", "student"), [(0, 1), (1, 0)])
def test_the_teacher_gets_no_gradient(teacher: int, student: int) -> None:
    p = problem(9, 4) | {"pairs_P2": [(0, 1)], "scale_P": torch.tensor([10.0], dtype=torch.float64)}
    z, both = p["z_MnD"].clone(), p["valid_Mn"][0] & p["valid_Mn"][1]
    p["z_MnD"].requires_grad_()
    (grad,) = torch.autograd.grad(relational_distillation(**p).sum(), p["z_MnD"])

    def cross_entropy(learner: Tensor) -> float:
        """What the student alone would descend: its cross-entropy with fixed targets."""
        total = 0.0
        for i in range(9):
            columns = [j for j in range(9) if kept(p, i, j, (0, 1), "all")]
            if both[i]:
                target = torch.softmax(10 * z[teacher, columns] @ z[teacher, i], 0)
                total -= float(target @ torch.log_softmax(10 * learner[columns] @ learner[i], 0))
        return total / int(both.sum()) / 2

    towards = torch.randn(9, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step = 1e-6
    slope = (cross_entropy(z[student] + step * towards) - cross_entropy(z[student] - step * towards)) / (2 * step)
    assert float((grad[student] * towards).sum()) == pytest.approx(slope, rel=1e-6)
    assert abs(slope) > 1e-3


def test_identical_structure_needs_no_distillation() -> None:
    p = problem(12)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    p["z_MnD"] = torch.stack([p["z_MnD"][0], p["z_MnD"][0] @ turn, -p["z_MnD"][0]])
    torch.testing.assert_close(relational_distillation(**p), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_invalid_rows_hold_does_not_matter(loss) -> None:
    p = problem(12)
    expected = loss(**p)
    poisoned = p["z_MnD"].masked_fill(~p["valid_Mn"][..., None], math.nan).requires_grad_()
    out = loss(**(p | {"z_MnD": poisoned}))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out.sum(), poisoned)
    assert grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", ["no anchor", "one subject", "one row"])
def test_nothing_to_contrast_is_zero_with_zero_gradient(loss, case: str) -> None:
    p = problem(1 if case == "one row" else 6)
    p["valid_Mn"] = torch.ones_like(p["valid_Mn"])
    if case == "no anchor":
        p["valid_Mn"][0, :3] = p["valid_Mn"][1, 3:] = p["valid_Mn"][2] = False
    if case == "one subject":
        p["subject_n"] = torch.zeros(6, dtype=torch.int64)
    p["z_MnD"].requires_grad_()
    p["scale_P"].requires_grad_()
    out = loss(**p)
    out.sum().backward()
    assert torch.equal(out.detach(), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(p["z_MnD"].grad, torch.zeros_like(p["z_MnD"]))
    assert torch.equal(p["scale_P"].grad, torch.zeros(3, dtype=torch.float64))


def test_a_dominant_positive_keeps_its_relative_accuracy() -> None:
    # One negative at cosine -1 with scale 40: the loss is log1p(exp(-80)), far below float32's epsilon.
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]).repeat(2, 1, 1).requires_grad_()
    out = contrastive_loss(z, [(0, 1)], torch.tensor([40.0]))
    assert out.item() == pytest.approx(math.exp(-80), rel=1e-4)
    (grad,) = torch.autograd.grad(out.sum(), z)
    assert grad.abs().max() > 0


def test_duplicates_of_one_row_cost_the_logarithm_of_their_number() -> None:
    z = torch.nn.functional.normalize(torch.ones(2, 5, 3), dim=-1)
    out = contrastive_loss(z, [(0, 1)], torch.tensor([100.0]))
    assert out.item() == pytest.approx(math.log(5), rel=1e-5)
    assert retrieval_accuracy(z, [(0, 1)]).item() == 0


def test_low_precision_inputs_use_float32_arithmetic() -> None:
    p = problem(33)
    half = p["z_MnD"].bfloat16()
    expected = contrastive_loss(**(p | {"z_MnD": half.double()}))
    with torch.autocast("cpu", torch.bfloat16):
        out = contrastive_loss(**(p | {"z_MnD": half}))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shares", [2, 4])
@pytest.mark.parametrize("negatives", ["all", "within_site"])
@pytest.mark.parametrize("with_subjects", [True, False])
def test_shares_sum_to_the_whole(loss, shares: int, negatives: str, with_subjects: bool) -> None:
    p = problem(12)
    p["valid_Mn"][:2, :3] = False  # the first of four processes has no anchor at all
    if not with_subjects:
        p["subject_n"] = None
    z, scale = p["z_MnD"].requires_grad_(), p["scale_P"].requires_grad_()
    whole = loss(**p, negatives=negatives)
    expected = torch.autograd.grad(whole.sum(), (z, scale))
    columns = Columns(z, p["valid_Mn"], p["subject_n"], p["site_n"])
    parts = []
    for offset in range(0, 12, 12 // shares):
        rows = slice(offset, offset + 12 // shares)
        local = {
            "z_MnD": z[:, rows],
            "valid_Mn": p["valid_Mn"][:, rows],
            "subject_n": None if p["subject_n"] is None else p["subject_n"][rows],
            "site_n": p["site_n"][rows],
        }
        parts.append(loss(**(p | local), negatives=negatives, columns=columns, row_offset=offset))
    total = torch.stack(parts).sum(0)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(total.sum(), (z, scale)), expected, rtol=1e-10, atol=1e-13)


def test_retrieval_counts_rows_whose_partner_is_nearest() -> None:
    eye = torch.eye(4)
    z = torch.stack([eye, eye[[0, 1, 3, 2]]])
    everything = {"valid_Mn": torch.ones(2, 4, dtype=torch.bool), "subject_n": torch.arange(4)}
    assert retrieval_accuracy(z, [(0, 0), (0, 1)], **everything).tolist() == [1.0, 0.5]
    near = torch.stack([eye, torch.nn.functional.normalize(z[1] + 0.3 * eye, dim=-1)])
    same_subject = everything | {"subject_n": torch.tensor([0, 1, 2, 2])}  # the swapped rows are no rivals now
    assert retrieval_accuracy(near, [(0, 1)], **everything).tolist() == [0.5]
    assert retrieval_accuracy(near, [(0, 1)], **same_subject).tolist() == [1.0]
    uneven = torch.tensor([[[0.3, 0.1, 0.95], [0.4, 0.9, 0.17]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    # Both find their partner among the second ones; of these, the first is nearer to another.
    assert retrieval_accuracy(uneven, [(0, 1)]).tolist() == retrieval_accuracy(uneven, [(1, 0)]).tolist() == [0.75]
    one_invalid = everything | {"valid_Mn": torch.tensor([[True] * 4, [True, True, True, False]])}
    assert retrieval_accuracy(z, [(0, 1)], **one_invalid).item() == pytest.approx(2 / 3)
    columns = Columns(z, everything["valid_Mn"], everything["subject_n"])
    share = {"valid_Mn": everything["valid_Mn"][:, 2:], "subject_n": everything["subject_n"][2:]}
    assert retrieval_accuracy(z[:, 2:], [(0, 0), (0, 1)], **share, columns=columns, row_offset=2).tolist() == [0.5, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_MnD": torch.zeros(3, 4)}, r"z_MnD: expected \(M, n, D\) of .*, found torch.float32 \(3, 4\)"),
        (
            {"z_MnD": torch.zeros(3, 4, 8).to(torch.float8_e4m3fn)},
            r"z_MnD: expected .*torch.float16, found torch.float8",
        ),
        ({"pairs_P2": [(0, 3)]}, r"pairs_P2: expected at least one pair of indices from 0 to 2, found \[\(0, 3\)\]"),
        ({"pairs_P2": torch.tensor([[0, -1]])}, "pairs_P2"),
        ({"pairs_P2": []}, "pairs_P2"),
        ({"scale_P": torch.ones(2)}, r"scale_P: expected shape \(3,\), one per pair, found \(2,\)"),
        ({"valid_Mn": torch.ones(3, 4)}, "valid_Mn: expected bool, found torch.float32"),
        ({"valid_Mn": torch.ones(3, 5, dtype=torch.bool)}, r"valid_Mn: expected shape \(3, 4\), found \(3, 5\)"),
        ({"subject_n": torch.zeros(5, dtype=torch.int64)}, r"subject_n: expected shape \(4,\), found \(5,\)"),
        ({"negatives": "within_site", "site_n": None}, "negatives='within_site': expected site_n"),
        (
            {"negatives": "within_site", "columns": Columns(torch.zeros(3, 4, 8).double(), None, torch.arange(4))},
            r"expected site_n \(and columns.site_N\), found None",
        ),
        ({"negatives": "none"}, "negatives: expected 'all' or 'within_site', found 'none'"),
        ({"row_offset": 1}, "row_offset: expected 0 to 0"),
        ({"columns": Columns(torch.zeros(2, 4, 8))}, r"columns.z_MND: expected shape \(3, 4, 8\), found \(2, 4, 8\)"),
        ({"columns": Columns(torch.zeros(3, 4, 8))}, "columns.z_MND: expected torch.float64 on cpu like z_MnD, found"),
        ({"weight_P": torch.ones(2)}, r"weight_P: expected shape \(3,\), found \(2,\)"),
        (
            {"z_MnD": torch.ones(3, 4, 8), "check": True},
            "expected finite rows of norm 1, found norm 2.828 in row 1 of embedding 0",
        ),
        (
            {"z_MnD": torch.ones(3, 4, 8) / torch.zeros(()), "check": True},
            "rows of norm 1, found norm inf in row",
        ),
        (
            {"columns": Columns(torch.zeros(3, 4, 8, dtype=torch.float64))},
            "columns.subject_N: expected exactly where subject_n is given",
        ),
    ],
)
def test_errors_say_what_was_found(change: dict, message: str) -> None:
    for loss in LOSSES:
        with pytest.raises(ValueError, match=message):
            loss(**(problem(4) | change))


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_multiply_losses_and_checked_embeddings_may_have_invalid_rows(loss) -> None:
    p, weight = problem(9), torch.tensor([0.5, 0.0, 3.0])
    p["z_MnD"][~p["valid_Mn"]] = torch.nan
    torch.testing.assert_close(loss(**p, weight_P=weight, check=True), loss(**p) * weight, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for CPU code")
@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_give_the_same_under_torch_compile(loss) -> None:
    """At two scales: what was compiled for one must not be kept for the other."""
    compiled = torch.compile(loss)
    for scale in (14.0, 100.0):
        p = problem(70, 32)
        z, scale_P = p["z_MnD"].requires_grad_(), torch.full((3,), scale, dtype=p["z_MnD"].dtype, requires_grad=True)
        passes = []
        for version in (loss, compiled):
            value_P = version(**(p | {"z_MnD": z, "scale_P": scale_P}), impl="blocks")
            passes.append((value_P.detach(), *torch.autograd.grad(value_P.sum(), (z, scale_P))))
        torch.testing.assert_close(passes[1], passes[0], rtol=1e-9, atol=1e-12)
