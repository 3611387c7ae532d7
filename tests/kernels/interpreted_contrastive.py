"""The Triton contrast against dense autograd in float64; test_contrastive_fused.py runs this in its own process.

Under TRITON_INTERPRET=1 the kernels run on the CPU, otherwise on the GPU.
"""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_contrastive_chunked import extreme, problem, results
from torch.utils._python_dispatch import TorchDispatchMode

from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import Columns, contrastive_loss, fused, launch, losses, relational_distillation

DEVICE = "cpu" if fused.INTERPRETED else "cuda"


def on_device(p: dict[str, Any]) -> dict[str, Any]:
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in p.items()}


def exactly(p: dict[str, Any]) -> list[torch.Tensor]:
    doubled: dict[str, Any] = {"z_MnD": p["z_MnD"].double(), "scale_P": p["scale_P"].double()}
    if "columns" in p:
        doubled["columns"] = replace(p["columns"], z_MND=p["columns"].z_MND.double())
    return results(contrastive_loss, p | doubled, impl="reference")


def expect_errors(exact: Any, rival: Any, found: Any, floor: float, factor: float = 1.5) -> None:
    """Relative errors in norm at most ``factor`` times those of the rival, or below ``floor``."""
    for name, truth, one, other in zip(("loss", "embeddings", "scale"), exact, rival, found, strict=True):
        assert other.isfinite().all(), name
        assert (other - truth).norm() <= max(factor * (one - truth).norm(), floor * truth.norm(), 1e-12), name


@pytest.mark.parametrize("negatives", ["all", "within_site"])
@pytest.mark.parametrize(("n", "width"), [(1, 48), (33, 130), (70, 512), (257, 48)])
def test_float32_is_as_accurate_as_dense_float32(negatives: str, n: int, width: int) -> None:
    p = on_device(problem(n, width, torch.float32, negatives=negatives))
    found = results(contrastive_loss, p, impl="triton")
    expect_errors(exactly(p), results(contrastive_loss, p, impl="reference"), found, 5e-7)


@pytest.mark.parametrize("columns", [False, True])
def test_bfloat16_is_as_accurate_as_dense_float32_on_rounded_embeddings(columns: bool) -> None:
    p = on_device(problem(90, 64, torch.float32))
    if columns:
        p |= {"columns": Columns(p["z_MnD"].clone(), p["valid_Mn"], p["subject_n"], p["site_n"])}
    rounded = p | {"z_MnD": p["z_MnD"].bfloat16()}
    if columns:
        rounded["columns"] = Columns(rounded["z_MnD"], p["valid_Mn"], p["subject_n"], p["site_n"])
    found = results(contrastive_loss, p, impl="triton", precision="bf16")
    rival = results(contrastive_loss, rounded, impl="reference")
    expect_errors(exactly(p), rival, found, 1e-3)
    assert (found[0] - exactly(p)[0]).norm() > 0, "nothing was rounded"


@pytest.mark.parametrize("shares", [2, 4])
def test_shares_sum_to_the_whole(shares: int) -> None:
    p = on_device(problem(76, 40, torch.float32))
    p["valid_Mn"][:, :19] = False
    n = 76 // shares

    def whole(z_MnD: torch.Tensor, scale_P: torch.Tensor, **_: Any) -> torch.Tensor:
        columns = Columns(z_MnD, p["valid_Mn"], p["subject_n"], p["site_n"])
        parts = []
        for start in range(0, 76, n):
            local = {name: p[name][..., start : start + n] for name in ("valid_Mn", "subject_n", "site_n")}
            shared = {"columns": columns, "row_offset": start, "impl": "triton"}
            parts.append(contrastive_loss(z_MnD[:, start : start + n], p["pairs_P2"], scale_P, **local, **shared))
        return torch.stack(parts).sum(0)

    expect_errors(exactly(p), results(contrastive_loss, p, impl="reference"), results(whole, p), 1e-6)


@pytest.mark.parametrize("kind", ["opposite", "long"])
def test_logits_beyond_the_range_of_exponentials_are_done_exactly(kind: str) -> None:
    p = on_device(extreme(kind, contrastive_loss))
    p["pairs_P2"], p["scale_P"] = [*p["pairs_P2"], (1, 2)], p["scale_P"].new_tensor([100.0, 90.0, 5.0])
    expect_errors(exactly(p), [torch.zeros(())] * 3, results(contrastive_loss, p, impl="triton"), 1e-4, factor=0)


def test_rows_that_only_one_side_has_do_not_spoil_long_embeddings() -> None:
    p = on_device(problem(40, 16, torch.float32, pairs_P2=[(0, 2)]))
    p["z_MnD"] = 3 * p["z_MnD"]
    p["scale_P"] = p["scale_P"].new_tensor([50.0])
    expect_errors(exactly(p), [torch.zeros(())] * 3, results(contrastive_loss, p, impl="triton"), 1e-4, factor=0)


def test_the_same_input_gives_the_same_bits_in_any_number_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    p = on_device(problem(100, 48, torch.float32))
    once, again = results(contrastive_loss, p, impl="triton"), results(contrastive_loss, p, impl="triton")
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))
    monkeypatch.setattr(launch, "WORKSPACE", 1)
    expect_errors(once, once, results(contrastive_loss, p, impl="triton"), 5e-7)


def test_nothing_as_large_as_the_similarities_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, n = 0, 260

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return out

    monkeypatch.setattr(launch, "WORKSPACE", 2**14)
    p = on_device(problem(n, 16, torch.float32, pairs_P2=[(0, 1), (1, 2)]))
    z, scale = p["z_MnD"].requires_grad_(), p["scale_P"][:2]
    monkeypatch.setattr(launch, "grad_tiles", _quietly(launch.grad_tiles))
    monkeypatch.setattr(launch, "sum_tiles", _quietly(launch.sum_tiles))
    with Sizes():
        contrastive_loss(**(p | {"z_MnD": z, "scale_P": scale}), impl="triton").sum().backward()
    assert 2**13 < largest < n * n


class _quietly:  # noqa: N801
    """A kernel that is launched without dispatch modes, whose tensors are the interpreter's own business."""

    def __init__(self, kernel: Any):
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            with torch.utils._python_dispatch._disable_current_modes():
                self.kernel[grid](*args, **kwargs)

        return run


@pytest.mark.skipif(not fused.INTERPRETED, reason="looks into the interpreter")
def test_bfloat16_products_are_never_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    seen = set()
    create_dot = interpreter.InterpreterBuilder.create_dot

    def watched(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        seen.update((str(a.dtype), str(b.dtype)))
        return create_dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", watched)
    results(contrastive_loss, problem(20, 16, torch.float32), impl="triton", precision="bf16")
    assert seen == {"fp32"}


def test_what_triton_cannot_do_is_refused_and_auto_takes_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = on_device(problem(8, 8))
    with pytest.raises(ValueError, match="impl='triton' cannot run: expected embeddings of 32 bits or fewer, found"):
        contrastive_loss(**p, impl="triton")
    with pytest.raises(ValueError, match="relational_distillation: impl='triton' cannot run: it has no Triton"):
        relational_distillation(**p, impl="triton")
    monkeypatch.setattr(losses, "TRITON_BY_DEFAULT", True)
    dispatch._announce.cache_clear()
    caplog.set_level(logging.INFO, logger="mcsp.kernels.dispatch")
    contrastive_loss(**p)
    contrastive_loss(**(p | {"z_MnD": p["z_MnD"].float()}))
    said = [record.getMessage() for record in caplog.records]
    assert said[-1] == "contrastive_loss runs as triton (precision fp32)"
