"""Triton contrast and distillation against dense autograd in float64; test_contrastive_fused.py runs this alone.

Under TRITON_INTERPRET=1 the kernels run on the CPU, otherwise on the GPU.
"""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import Columns, blocks, contrastive_loss, fused, relational_distillation
from tests.kernels.test_contrastive_blocks import extreme, problem, results

DEVICE = "cpu" if fused.INTERPRETED else "cuda"
# The interpreter computes in NumPy, which warns of NaN and inf; they are what some cases are about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
LOSSES = [contrastive_loss, relational_distillation]


def on_device(p: dict[str, Any]) -> dict[str, Any]:
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in p.items()}


def exactly(loss: Any, p: dict[str, Any]) -> list[torch.Tensor]:
    doubled: dict[str, Any] = {"z_MnD": p["z_MnD"].double(), "scale_P": p["scale_P"].double()}
    if "columns" in p:
        doubled["columns"] = replace(p["columns"], z_MND=p["columns"].z_MND.double())
    return results(loss, p | doubled, impl="reference")


def expect_errors(exact: Any, rival: Any, found: Any, floor: float, factor: float = 1.5) -> None:
    """Relative errors in norm at most ``factor`` times those of the rival, or below ``floor``."""
    for name, truth, one, other in zip(("loss", "embeddings", "scale"), exact, rival, found, strict=True):
        assert other.isfinite().all(), name
        assert (other - truth).norm() <= max(factor * (one - truth).norm(), floor * truth.norm(), 1e-12), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("n", "width", "negatives"),
    [
        (1, 48, "all"),
        (33, 130, "within_site"),
        pytest.param(33, 512, "all", marks=pytest.mark.slow),
        pytest.param(257, 48, "within_site", marks=pytest.mark.slow),
    ],
)
def test_float32_is_as_accurate_as_dense_float32(loss: Any, n: int, width: int, negatives: str) -> None:
    change = {"pairs_P2": [(0, 1), (0, 3)], "scale_P": torch.tensor([100.0, 14.0])} if n == 257 else {}
    p = on_device(problem(n, width, torch.float32, negatives=negatives, **change))
    found = results(loss, p, impl="triton")
    expect_errors(exactly(loss, p), results(loss, p, impl="reference"), found, 5e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("columns", [False, True])
def test_bfloat16_is_as_accurate_as_dense_float32_on_rounded_embeddings(loss: Any, columns: bool) -> None:
    p = on_device(problem(70, 64, torch.float32))
    if columns:
        p |= {"columns": Columns(p["z_MnD"].clone(), p["valid_Mn"], p["subject_n"], p["site_n"])}
    rounded = p | {"z_MnD": p["z_MnD"].bfloat16()}
    if columns:
        rounded["columns"] = Columns(rounded["z_MnD"], p["valid_Mn"], p["subject_n"], p["site_n"])
    found = results(loss, p, impl="triton", precision="bf16")
    rival = results(loss, rounded, impl="reference")
    expect_errors(exactly(loss, p), rival, found, 1e-6)  # all of the error that rounding the embeddings makes
    assert (found[0] - exactly(loss, p)[0]).norm() > 0, "nothing was rounded"


@pytest.mark.parametrize("loss", LOSSES)
def test_shares_sum_to_the_whole(loss: Any) -> None:
    p = on_device(problem(76, 40, torch.float32, weight_P=torch.tensor([0.5, 2.0, 1.0, 3.0])))
    p["valid_Mn"][:, :19] = False
    exact, dense = exactly(loss, p), results(loss, p, impl="reference")

    def whole(z_MnD: torch.Tensor, scale_P: torch.Tensor, **_: Any) -> torch.Tensor:
        columns = Columns(z_MnD, p["valid_Mn"], p["subject_n"], p["site_n"])
        parts = []
        for start in range(0, 76, 38):
            local = {name: p[name][..., start : start + 38] for name in ("valid_Mn", "subject_n", "site_n")}
            shared = {"columns": columns, "row_offset": start, "impl": "triton", "weight_P": p["weight_P"]}
            parts.append(loss(z_MnD[:, start : start + 38], p["pairs_P2"], scale_P, **local, **shared))
        return torch.stack(parts).sum(0)

    expect_errors(exact, dense, results(whole, p), 1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["opposite", "long"])
def test_logits_beyond_the_range_of_exponentials_are_done_exactly(loss: Any, kind: str) -> None:
    p = on_device(extreme(kind, loss))
    p["pairs_P2"], p["scale_P"] = [*p["pairs_P2"], (1, 2)], p["scale_P"].new_tensor([100.0, 90.0, 5.0])
    expect_errors(exactly(loss, p), [torch.zeros(())] * 3, results(loss, p, impl="triton"), 1e-4, factor=0)


def test_rows_that_only_one_side_has_do_not_spoil_long_embeddings() -> None:
    p = on_device(problem(40, 16, torch.float32, pairs_P2=[(0, 2)]))
    p["z_MnD"] = 3 * p["z_MnD"]
    p["scale_P"] = p["scale_P"].new_tensor([50.0])
    found = results(contrastive_loss, p, impl="triton")
    expect_errors(exactly(contrastive_loss, p), [torch.zeros(())] * 3, found, 1e-4, factor=0)


def test_the_loss_keeps_its_relative_accuracy_where_the_positive_dominates() -> None:
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], device=DEVICE).repeat(2, 1, 1)
    for scale in (0.1, 1.0, 10.0, 40.0):
        exact = torch.nn.functional.softplus(torch.tensor(-2 * scale, dtype=torch.float64)).item()
        found = contrastive_loss(z, [(0, 1)], torch.tensor([scale], device=DEVICE), impl="triton").item()
        assert found == pytest.approx(exact, rel=2e-5 if scale == 40 else 2e-6)


class Waits(TorchDispatchMode):
    """Operations that hand a value to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        assert name not in {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"}, name
        return func(*args, **(kwargs or {}))


class Unseen:
    """A kernel whose tensors dispatch modes do not see: the interpreter's own business."""

    def __init__(self, kernel: Any, log: list[str]):
        self.kernel, self.log = kernel, log

    def __getitem__(self, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            self.log.append(self.kernel.__name__)
            with torch.utils._python_dispatch._disable_current_modes():
                self.kernel[grid](*args, **kwargs)

        return run


@pytest.mark.parametrize("loss", LOSSES)
def test_one_launch_reads_all_pairs_and_the_host_waits_for_none(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    for name in [name for name in vars(fused) if name.endswith("_kernel")]:
        monkeypatch.setattr(fused, name, Unseen(getattr(fused, name), log))
    p = on_device(problem(20, 16, torch.float32))
    z = p["z_MnD"].requires_grad_()
    with Waits():
        loss(**(p | {"z_MnD": z}), impl="triton", workspace_bytes=2**30).sum().backward()
    which = "contrast" if loss is contrastive_loss else "relation"
    assert log == [f"{which}_sums_kernel", f"{which}_gradient_kernel"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("columns", [False, True])
def test_many_blocks_are_one(loss: Any, columns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p = on_device(problem(70, 16, torch.float32, negatives="within_site"))
    if columns:
        p |= {"columns": Columns(p["z_MnD"].clone(), p["valid_Mn"], p["subject_n"], p["site_n"])}
    monkeypatch.setattr(blocks, "GOOD_ROWS", 40)
    found = results(loss, p, impl="triton", workspace_bytes=1)
    expect_errors(exactly(loss, p), results(loss, p, impl="reference"), found, 5e-7)


@pytest.mark.parametrize("poison", ["embeddings", "scale nan", "scale inf"])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_no_number_stays_none(loss: Any, poison: str) -> None:
    p = on_device(problem(20, 16, torch.float32, pairs_P2=[(0, 1)], scale_P=torch.tensor([10.0]), valid_Mn=None))
    if poison == "embeddings":
        p["z_MnD"][:] = torch.nan
    else:
        p["scale_P"][:] = float(poison.removeprefix("scale "))
    value, grad, _ = results(loss, p, impl="triton")
    assert value.isnan().all()
    assert not grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_scales_and_weights_of_any_stride_count(loss: Any) -> None:
    p = on_device(problem(20, 16, torch.float32, pairs_P2=[(0, 1), (1, 2), (0, 2)]))
    strided = {
        "scale_P": torch.tensor([15.0], device=DEVICE).expand(3),
        "weight_P": torch.tensor([[0.7, 9.0], [-0.5, 9.0], [0.1, 9.0]], device=DEVICE)[:, 0],
    }
    truth = exactly(loss, p | {name: x.contiguous() for name, x in strided.items()})
    found = loss(**(p | strided), impl="triton").double()
    torch.testing.assert_close(found, truth[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_input_gives_the_same_bits(loss: Any) -> None:
    p = on_device(problem(40, 48, torch.float32))
    once, again = results(loss, p, impl="triton"), results(loss, p, impl="triton")
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_changed_before_the_backward_pass_are_noticed(loss: Any) -> None:
    p = on_device(problem(12, 16, torch.float32, valid_Mn=None))
    z = p["z_MnD"].requires_grad_() * 1
    out = loss(**(p | {"z_MnD": z}), impl="triton").sum()
    with torch.no_grad():
        z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_what_triton_cannot_do_is_refused_and_auto_takes_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = on_device(problem(8, 8))
    with pytest.raises(ValueError, match="impl='triton' cannot run: expected embeddings of 32 bits or fewer, found"):
        contrastive_loss(**p, impl="triton")
    rows = tuple(dispatch.Row(loss.__name__, "cpu", ("fp32",), None, "triton", "a file") for loss in LOSSES)
    monkeypatch.setattr(dispatch, "TABLE", rows + dispatch.TABLE)
    monkeypatch.setattr(dispatch, "device_name", lambda device: "cpu")
    dispatch._announced.clear()
    caplog.set_level(logging.INFO, logger="mcsp.kernels.dispatch")
    contrastive_loss(**p)
    contrastive_loss(**(p | {"z_MnD": p["z_MnD"].float()}))
    contrastive_loss(**(p | {"z_MnD": p["z_MnD"].float()}), precision="bf16")
    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[3] for line in said] == ["blocks", "triton", "reference"]
