"""Invalid rows and columns where they would decide the result: every compared logit is far below the 0 of a zeroed row.

Covers: kernels/contrastive/problem.py
"""

import math
from typing import Any

import pytest
import torch

from mcsp.kernels.contrastive import Columns, contrastive_loss, relational_distillation

LOSSES = [contrastive_loss, relational_distillation]


def opposed(n: int = 6) -> dict[str, Any]:
    """Two embeddings in the plane: positives are equal, all others point away by 120 degrees or more."""
    angle = torch.arange(n, dtype=torch.float64) % 3 * 2 * math.pi / 3
    z = torch.stack([angle.cos(), angle.sin()], -1)
    subject = torch.arange(n) % 3
    return {
        "z_MnD": torch.stack([z, z]), "pairs_P2": [(0, 1)], "scale_P": torch.tensor([50.0], dtype=torch.float64),
        "subject_n": subject,
    }  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("impl", ["reference", "blocks"])
@pytest.mark.parametrize("masked", ["both", "columns", "rows"])
def test_an_invalid_row_is_as_one_that_is_not_there(loss: Any, impl: str, masked: str) -> None:
    whole = opposed(6)
    short = {**whole, "z_MnD": whole["z_MnD"][:, :4], "subject_n": whole["subject_n"][:4]}
    expected = loss(**short, impl=impl)
    valid = torch.arange(6) < 4
    z = whole["z_MnD"].masked_fill(~valid[:, None], torch.nan)
    columns = Columns(z, valid.expand(2, 6), whole["subject_n"])
    if masked == "both":
        given = {**whole, "z_MnD": z, "valid_Mn": valid.expand(2, 6), "columns": columns}
    elif masked == "columns":  # these rows are all valid, other processes' are not
        given = {**short, "columns": columns}
    else:
        rows = torch.arange(4) < 3
        expected = loss(**short, valid_Mn=rows.expand(2, 4), impl=impl)
        held = short["z_MnD"].masked_fill(~rows[:, None], torch.nan)
        given = {**short, "z_MnD": held, "valid_Mn": rows.expand(2, 4)}
    torch.testing.assert_close(loss(**given, impl=impl), expected, rtol=1e-12, atol=0)


def test_the_loss_of_opposed_embeddings_is_that_on_paper() -> None:
    """Four rows, of subjects 0, 1, 2, 0: an anchor's positive has logit 50, each of its negatives -25."""
    p = opposed(4)
    p["scale_P"] = torch.tensor([2.0], dtype=torch.float64)
    # Anchors of subject 0 have two negatives, the others three: log(1 + k exp(-1 - 2)).
    expected = (2 * math.log1p(2 * math.exp(-3)) + 2 * math.log1p(3 * math.exp(-3))) / 4
    for impl in ("reference", "blocks"):
        assert contrastive_loss(**p, impl=impl).item() == pytest.approx(expected, rel=1e-12)
