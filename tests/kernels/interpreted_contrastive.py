"""Triton contrast and distillation against dense autograd in float64; test_contrastive_fused.py runs this alone.

Under TRITON_INTERPRET=1 the kernels run on the CPU, otherwise on the GPU.
"""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import (
    Columns,
    contrastive_loss,
    fused,
    launch,
    launch_distillation,
    losses,
    relational_distillation,
)
from tests.kernels.test_contrastive_chunked import extreme, problem, results

DEVICE = "cpu" if fused.INTERPRETED else "cuda"
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


class Watch(TorchDispatchMode):
    """Largest tensor made, and names of operations that are neither views nor mere allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.ran = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        name = str(func.overloadpacket).removeprefix("aten.")
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.ran.append(name)
        return out


class Counted:
    """A kernel that counts its launches; dispatch modes do not see its tensors, the interpreter's own business."""

    def __init__(self, kernel: Any, log: list[str]):
        self.kernel, self.log = kernel, log

    def __getitem__(self, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            self.log.append(self.kernel.__name__)
            with torch.utils._python_dispatch._disable_current_modes():
                self.kernel[grid](*args, **kwargs)

        return run


def count_launches(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    for module in (launch, launch_distillation):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, triton.runtime.interpreter.InterpretedFunction | triton.JITFunction):
                monkeypatch.setattr(module, name, Counted(kernel, log))


@pytest.mark.parametrize("gathered", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss", LOSSES)
def test_at_most_eight_launches_and_the_host_waits_for_none(
    loss: Any, gathered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen pairs; sizes change no launch. That a CUDA graph captures them is left to show, and needs a GPU."""
    n, total = 20, 40 if gathered else 20
    draw = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, total, 16, generator=draw), dim=-1).to(DEVICE)
    valid, subject = torch.ones(6, total, dtype=torch.bool, device=DEVICE), torch.arange(total, device=DEVICE)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    rows, scale = z[:, :n].contiguous().requires_grad_(), torch.full((15,), 14.0, device=DEVICE).requires_grad_()
    p = {"valid_Mn": valid[:, :n].contiguous(), "subject_n": subject[:n], "impl": "triton"}
    if gathered:
        p["columns"] = Columns(z.requires_grad_(), valid, subject)
    log: list[str] = []
    count_launches(monkeypatch, log)
    # Tables of pairs are copied to the device the first time.
    torch.autograd.grad(loss(rows, pairs, scale, **p).sum(), (rows, scale))
    log.clear()
    watch, grad_P = Watch(), torch.ones(15, device=DEVICE)
    with watch:
        torch.autograd.grad(loss(rows, pairs, scale, **p), (rows, scale), grad_P)
    assert len(log) >= 5, log
    assert len(log) + len(watch.ran) <= 8, (log, watch.ran)
    # Every operation that hands a number to the host is one of these.
    assert not {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_to_copy", "copy_"} & set(watch.ran)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_as_large_as_the_similarities_is_made(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 260
    p = on_device(problem(n, 16, torch.float32, pairs_P2=[(0, 1)]))
    count_launches(monkeypatch, [])
    z, watch = p["z_MnD"].requires_grad_(), Watch()
    with watch:
        loss(**(p | {"z_MnD": z, "scale_P": p["scale_P"][:1]}), impl="triton").sum().backward()
    assert 2**13 < watch.largest < n * n


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_input_gives_the_same_bits(loss: Any) -> None:
    p = on_device(problem(40, 48, torch.float32))
    once, again = results(loss, p, impl="triton"), results(loss, p, impl="triton")
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_changed_before_the_backward_pass_are_noticed(loss: Any) -> None:
    p = on_device(problem(12, 16, torch.float32))
    z = p["z_MnD"].requires_grad_() * 1
    out = loss(**(p | {"z_MnD": z}), impl="triton").sum()
    with torch.no_grad():
        z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.skipif(not fused.INTERPRETED, reason="looks into the interpreter")
def test_bfloat16_products_are_never_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    seen = set()
    create_dot = interpreter.InterpreterBuilder.create_dot

    def watched(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        seen.update((str(a.dtype), str(b.dtype)))
        return create_dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", watched)
    for loss in LOSSES:
        seen.clear()
        results(loss, problem(20, 16, torch.float32), impl="triton", precision="bf16")
        assert seen == {"fp32"}


def test_what_triton_cannot_do_is_refused_and_auto_takes_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = on_device(problem(8, 8))
    with pytest.raises(ValueError, match="impl='triton' cannot run: expected embeddings of 32 bits or fewer, found"):
        contrastive_loss(**p, impl="triton")
    wide = on_device(problem(2, 4112, torch.float32))
    with pytest.raises(ValueError, match="distillation: impl='triton' cannot run: expected a width of at most 4096, f"):
        relational_distillation(**wide, impl="triton")
    monkeypatch.setattr(losses, "TRITON_BY_DEFAULT", True)
    dispatch._announce.cache_clear()
    caplog.set_level(logging.INFO, logger="mcsp.kernels.dispatch")
    contrastive_loss(**p)
    contrastive_loss(**(p | {"z_MnD": p["z_MnD"].float()}))
    said = [record.getMessage() for record in caplog.records]
    assert said[-1] == "contrastive_loss runs as triton (precision fp32)"
