"""kernels/dispatch.py: the table, what it decides, and the files that it names."""

from pathlib import Path

import pytest
import torch

from mcsp.kernels import dispatch
from mcsp.kernels.dispatch import Row, choose, decided

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_every_row_names_a_result_file_or_is_the_safe_one() -> None:
    for row in dispatch.TABLE:
        assert (RESULTS / row.evidence).is_file() if row.evidence else row.device == "*", row


@pytest.mark.parametrize("operation", sorted({row.operation for row in dispatch.TABLE}))
@pytest.mark.parametrize("device", ["cuda", "sm_80", "sm_999", "xpu", "meta"])
def test_a_device_without_a_result_file_takes_no_triton_and_no_dense_loss(operation: str, device: str) -> None:
    for precision, size in (("bf16", 1), ("fp32", 10**9)):
        expected = "blocks" if operation in ("contrastive_loss", "relational_distillation") else "reference"
        assert decided(operation, device, precision, size) == expected


def test_the_first_row_that_fits_device_size_and_precision_decides() -> None:
    table = (
        Row("x", "sm_90", ("bf16",), 100, "triton", "a file"),
        Row("x", "sm_90", (), None, "blocks", "a file"),
        Row("x", "*", (), None, "reference", None),
    )
    assert decided("x", "sm_90", "bf16", 100, table) == "triton"
    assert decided("x", "sm_90", "bf16", 101, table) == "blocks"
    assert decided("x", "sm_90", "fp32", 1, table) == "blocks"
    assert decided("x", "cpu", "bf16", 1, table) == "reference"


def test_a_cpu_takes_the_dense_loss_up_to_the_size_of_the_table() -> None:
    assert decided("contrastive_loss", "cpu", "fp32", 2**13) == "reference"
    assert decided("contrastive_loss", "cpu", "fp32", 2**13 + 1) == "blocks"


def test_where_the_table_wants_triton_and_it_cannot_run_the_safe_row_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (Row("x", "cpu", (), None, "triton", "a file"), Row("x", "*", (), None, "blocks", None))
    monkeypatch.setattr(dispatch, "TABLE", table)
    assert choose("x", "auto", "fp32", torch.device("cpu"), 1, lambda: "no reason") == "blocks"
    assert choose("x", "auto", "fp32", torch.device("cpu"), 1, lambda: None) == "triton"
    with pytest.raises(ValueError, match="x: impl='triton' cannot run: no reason"):
        choose("x", "triton", "fp32", torch.device("cpu"), 1, lambda: "no reason")
