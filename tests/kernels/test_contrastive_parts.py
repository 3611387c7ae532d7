"""Parts of losses in blocks, each by value: sizes of blocks, what is compared, sums that are merged, types of products.

Covers: kernels/contrastive/blocks.py, kernels/contrastive/problem.py
"""

from typing import Any

import pytest
import torch

from mcsp.kernels.contrastive import Columns, blocks, plain
from mcsp.kernels.contrastive.blocks import Compared, Plan, add_to, factor_type, finite, merge, product, rounded
from mcsp.kernels.contrastive.problem import Problem, check_values, checked


def problem(n: int, total: int, width: int = 8, **more: Any) -> Problem:
    draw = torch.Generator().manual_seed(n)
    z = torch.nn.functional.normalize(torch.randn(2, total, width, generator=draw), dim=-1)
    columns = Columns(z, more.pop("valid_MN", None))
    return checked(z[:, :n].clone(), [(0, 1)], more.pop("valid_Mn", None), None, None, "all", columns, 0, **more)


def shapes(n: int, total: int, jobs: int, planes: int, memory: int) -> list[tuple[int, int, int]]:
    """Jobs, rows and columns of each block; all of them together are every job's similarities once."""
    valid_Jn, valid_JN = torch.ones(jobs, n, dtype=torch.bool), torch.ones(jobs, total, dtype=torch.bool)
    seen = torch.zeros(jobs, n, total, dtype=torch.int64)
    found = []
    for block in blocks.blocks(problem(n, total), valid_Jn, valid_JN, planes, Plan(plain, "fp32", memory)):
        seen[block.jobs, block.rows, block.columns] += 1
        found.append(tuple(seen[block.jobs, block.rows, block.columns].shape))
        assert len(block.compared.subject_r) == found[-1][1] and len(block.compared.subject_c) == found[-1][2]
        assert block.compared.valid_gr is None and block.compared.site_r is None
    assert (seen == 1).all()
    return found


def test_blocks_fill_the_memory_and_have_256_rows_at_least() -> None:
    """Float32 of 4 bytes; ``planes`` matrices of a block's size are there at once."""
    assert shapes(40, 50, 7, 3, 4 * 3 * 40 * 50 * 7) == [(7, 40, 50)]
    assert shapes(40, 50, 7, 3, 4 * 3 * 40 * 50 * 3 + 4) == [(3, 40, 50), (3, 40, 50), (1, 40, 50)]
    assert shapes(40, 50, 2, 3, 1) == [(1, 40, 50)] * 2, "the least that is taken at once"
    assert shapes(300, 600, 1, 2, 4 * 2 * 300 * 600) == [(1, 300, 600)]
    assert shapes(300, 600, 2, 1, 4 * 280 * 600) == [(1, 280, 600)] * 2 + [(1, 20, 600)] * 2
    assert shapes(300, 600, 1, 1, 4 * 256 * 300) == [(1, 256, 300)] * 2 + [(1, 44, 300)] * 2
    assert shapes(300, 600, 1, 1, 1) == [(1, 256, 256)] * 2 + [(1, 256, 88)] + [(1, 44, 256)] * 2 + [(1, 44, 88)]
    assert blocks.GOOD_ROWS == 256


def test_masks_go_with_their_blocks_where_rows_or_columns_may_be_invalid() -> None:
    valid_Mn, valid_MN = torch.arange(6).expand(2, 6) % 3 > 0, torch.arange(9).expand(2, 9) % 2 > 0
    for given in ({"valid_Mn": valid_Mn}, {"valid_MN": valid_MN}, {"valid_Mn": valid_Mn, "valid_MN": valid_MN}):
        every = problem(6, 9, **given)
        assert every.masked == ("valid_Mn" in given, "valid_MN" in given)
        [block] = blocks.blocks(every, every.valid([1]), every.valid_columns([0]), 1, Plan(plain, "fp32", 2**20))
        assert block.compared.valid_gr is not None and block.compared.valid_gc is not None
        assert block.compared.valid_gr.tolist() == [every.valid_Mn[1].tolist()]
        assert block.compared.valid_gc.tolist() == [every.valid_MN[0].tolist()]


def test_dropped_is_what_is_of_one_subject_another_site_or_not_valid() -> None:
    subject_r, subject_c = torch.tensor([1, 2]), torch.tensor([1, 2, 3])
    site_r, site_c = torch.tensor([0, 1]), torch.tensor([0, 0, 1])
    same = torch.tensor([[True, False, False], [False, True, False]])
    assert Compared(subject_r, subject_c, None, None, None, None).dropped().tolist() == [same.tolist()]  # type: ignore[union-attr]
    found = Compared(subject_r, subject_c, site_r, site_c, None, None).dropped()
    assert found is not None and found.tolist() == [[[True, False, True], [True, True, False]]]
    valid_gr, valid_gc = (
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[True, True, True], [True, True, False]]),
    )
    found = Compared(subject_r, subject_c, None, None, valid_gr, valid_gc).dropped()
    assert found is not None and found.tolist() == [
        [[True, False, False], [True, True, True]], [[True, False, True], [False, True, True]],
    ]  # fmt: skip
    assert Compared(subject_r, subject_c + 5, None, None, valid_gr[1:], valid_gc[:1]).dropped() is None


def test_sums_of_exponentials_are_merged_at_the_higher_top() -> None:
    logits = torch.tensor([[1.0, -3.0, 700.0, -torch.inf], [2.0, -900.0, -5.0, -torch.inf]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    top, new_top = logits[0].clone(), logits[1]
    sums = [torch.tensor([1.0, 1, 1, 0], dtype=torch.float64), weight[0] * torch.tensor([1.0, 1, 1, 0])]
    new = [torch.tensor([1.0, 1, 1, 0], dtype=torch.float64), weight[1] * torch.tensor([1.0, 1, 1, 0])]
    merge(top, sums, new_top, new)
    assert top.tolist() == [2.0, -3.0, 700.0, -torch.inf]
    expected = (logits - finite(top)).exp()
    torch.testing.assert_close(sums[0], expected.sum(0))
    torch.testing.assert_close(sums[1], (weight * expected).sum(0))
    assert finite(torch.tensor([-torch.inf, 3.0, torch.inf])).tolist() == [0.0, 3.0, torch.inf]


def test_parts_are_added_to_their_places_as_often_as_they_are_named() -> None:
    totals = torch.arange(6.0).view(3, 2)
    add_to(totals, [2, 0, 2, 2], torch.tensor([[10.0, 20], [1, 2], [100, 200], [1000, 2000]]))
    assert totals.tolist() == [[1.0, 3.0], [2.0, 3.0], [1114.0, 2225.0]]


def test_factors_are_rounded_where_bf16_is_asked_for_and_sums_are_not() -> None:
    x = torch.tensor([[[1.0, 1 / 3]]])
    assert factor_type(torch.float32, "bf16") == torch.bfloat16 and factor_type(torch.float64, "bf16") == torch.float64
    assert [factor_type(torch.float32, p) for p in ("fp32", "tf32")] == [torch.float32] * 2
    assert rounded(x, "fp32") is x and rounded(x, "bf16")[0, 0, 1].item() == 0.333984375
    found = product(x.bfloat16(), x.bfloat16().transpose(1, 2))
    assert found.dtype == torch.float32 and found.item() == 1 + 0.333984375**2
    assert product(x.double(), x.double().transpose(1, 2)).dtype == torch.float64


@pytest.mark.parametrize(
    ("norm", "fine"), [(0.985, False), (0.9901, True), (1.0099, True), (1.015, False), (0.0, False)]
)
def test_rows_are_of_norm_one_to_a_hundredth(norm: float, fine: bool) -> None:
    every = problem(3, 5)
    every.z_MnD[1, 2] *= norm
    if fine:
        check_values(every)
    else:
        with pytest.raises(ValueError, match=rf"z_MnD: expected finite rows of norm 1, found norm {norm:.4g} in row 2"):
            check_values(every)
    every = problem(3, 5, valid_Mn=torch.tensor([[True] * 3, [True, True, False]]))
    every.z_MnD[1, 2] = torch.nan
    check_values(every)
    every.z_MND[0, 4] *= 2
    with pytest.raises(
        ValueError, match=r"columns.z_MND: expected finite rows of norm 1, found norm 2 in row 4 of embedding 0"
    ):
        check_values(every)


def test_weights_are_shares_of_all_anchors() -> None:
    valid_Mn, valid_MN = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    valid_Mn[0, 1] = valid_MN[0, 1] = valid_MN[1, 4] = False
    every = problem(3, 5, valid_Mn=valid_Mn, valid_MN=valid_MN, weight_P=torch.tensor([0.5]))
    assert every.anchors().tolist() == [[True, False, True]]
    torch.testing.assert_close(every.weights(), torch.tensor([[1.0, 0.0, 1.0]]) / 3 * 0.5)
    nobody = problem(3, 5, valid_Mn=torch.zeros(2, 3, dtype=torch.bool), valid_MN=torch.zeros(2, 5, dtype=torch.bool))
    assert nobody.weights().tolist() == [[0.0] * 3]
    kept = problem(3, 5)
    assert kept.zeroed().z_MnD is kept.z_MnD and kept.zeroed().z_MND is kept.z_MND, "nothing is copied"
    assert not every.zeroed().z_MnD[0, 1].any() and not every.zeroed().z_MND[1, 4].any()
