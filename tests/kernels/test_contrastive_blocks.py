"""Losses from blocks against the dense definition and its autograd in float64: values, gradients, memory, bits.

Covers: kernels/contrastive/blocks.py, kernels/contrastive/contrast.py, kernels/contrastive/distillation.py,
kernels/contrastive/losses.py, kernels/contrastive/plain.py
"""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import (
    Columns,
    blocks,
    contrastive_loss,
    losses,
    plain,
    relational_distillation,
    retrieval_accuracy,
)

LOSSES = [contrastive_loss, relational_distillation]


def problem(n: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0, **change: Any) -> dict[str, Any]:
    """Four embeddings; half the rows valid in each, repeated subjects, a duplicated row, a pair without an anchor."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(4, n, width, generator=draw, dtype=torch.float64)
    z[1] = z[0] + 0.3 * z[1]  # aligned like embeddings late in training
    z[:, n // 2] = z[:, 0]
    valid = torch.rand(4, n, generator=draw) > 0.3
    valid[3] = ~valid[0]
    subject = torch.randint(0, max(2, n // 2), (n,), generator=draw)
    p = {
        "z_MnD": torch.nn.functional.normalize(z, dim=-1).to(dtype),
        "pairs_P2": [(0, 1), (1, 2), (0, 3), (2, 2)],
        "scale_P": torch.tensor([1.0, 14.0, 30.0, 100.0], dtype=dtype),
        "valid_Mn": valid,
        "subject_n": subject,
        "site_n": subject % 3,
    }
    return p | change


def results(loss: Any, p: dict[str, Any], **how: Any) -> list[torch.Tensor]:
    """The loss, and gradients of an uneven sum of its pairs for embeddings and scales; in float64."""
    z, scale = p["z_MnD"].clone().requires_grad_(), p["scale_P"].clone().requires_grad_()
    out = loss(**(p | {"z_MnD": z, "scale_P": scale}), **how)
    weight = torch.arange(1, out.numel() + 1, dtype=out.dtype, device=out.device)
    grads = torch.autograd.grad((out * weight).sum(), (z, scale))
    return [x.detach().double() for x in (out, *grads)]


@pytest.fixture(autouse=True, params=[(48, 2**16), (256, 2**30)], ids=["small blocks", "all pairs in one block"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "GOOD_ROWS", request.param[0])
    monkeypatch.setitem(dispatch.WORKSPACE_BYTES, "cpu", request.param[1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("negatives", ["all", "within_site"])
@pytest.mark.parametrize("n", [1, 33, 257])
@pytest.mark.parametrize("width", [48, 130, 512])
def test_equals_dense_autograd(loss: Any, negatives: str, n: int, width: int) -> None:
    p = problem(n, width, negatives=negatives)
    expected, found = results(loss, p, impl="reference"), results(loss, p, impl="blocks")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 70),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
    scale=st.floats(1, 100),
    loss=st.sampled_from(LOSSES),
    subjects=st.booleans(),
    negatives=st.sampled_from(["all", "within_site"]),
)
def test_any_shape_equals_dense_autograd(n, width, seed, scale, loss, subjects, negatives) -> None:
    p = problem(n, width, seed=seed, negatives=negatives, scale_P=torch.full((4,), scale, dtype=torch.float64))
    if not subjects:
        p["subject_n"] = None
    expected, found = results(loss, p, impl="reference"), results(loss, p, impl="blocks")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shares", [2, 4])
def test_shares_sum_to_the_whole(loss: Any, shares: int) -> None:
    p = problem(132, 40)
    p["valid_Mn"][:, :40] = False  # the first of four processes has no anchor at all
    expected = results(loss, p, impl="reference")
    n = 132 // shares

    def whole(z_MnD: torch.Tensor, scale_P: torch.Tensor, **_: Any) -> torch.Tensor:
        columns = Columns(z_MnD, p["valid_Mn"], p["subject_n"], p["site_n"])
        parts = []
        for start in range(0, 132, n):
            local = {name: p[name][..., start : start + n] for name in ("valid_Mn", "subject_n", "site_n")}
            shared = {"columns": columns, "row_offset": start, "impl": "blocks"}
            parts.append(loss(z_MnD[:, start : start + n], p["pairs_P2"], scale_P, **local, **shared))
        return torch.stack(parts).sum(0)

    torch.testing.assert_close(results(whole, p), expected, rtol=1e-10, atol=1e-13)


def test_gradients_of_rows_and_columns_are_told_apart() -> None:
    p = problem(21, 7)
    grads = []
    for impl in ("reference", "blocks"):
        rows, columns = p["z_MnD"][:, 4:11].clone().requires_grad_(), p["z_MnD"].clone().requires_grad_()
        local = {name: p[name][..., 4:11] for name in ("valid_Mn", "subject_n", "site_n")}
        gathered = Columns(columns, p["valid_Mn"], p["subject_n"], p["site_n"])
        out = contrastive_loss(rows, p["pairs_P2"], p["scale_P"], **local, columns=gathered, row_offset=4, impl=impl)
        grads.append(torch.autograd.grad(out.sum(), (rows, columns)))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Any) -> None:
    p = problem(9, 5)
    if loss is relational_distillation:
        # Both choices of the teacher give opposite halves: only the contrast is the gradient of its own value.
        expected, found = results(loss, p, impl="reference"), results(loss, p, impl="blocks")
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
        return
    z, scale = p.pop("z_MnD").requires_grad_(), p.pop("scale_P").clamp(max=20).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, s: loss(z_MnD=z, scale_P=s, impl="blocks", **p), (z, scale))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [33, 257])
@pytest.mark.parametrize("width", [48, 512])
def test_float32_is_as_accurate_as_dense_float32(loss: Any, n: int, width: int) -> None:
    p = problem(n, width, torch.float32)
    exact = results(loss, p | {"z_MnD": p["z_MnD"].double(), "scale_P": p["scale_P"].double()}, impl="reference")
    dense, found = results(loss, p, impl="reference"), results(loss, p, impl="blocks")
    for name, truth, one, other in zip(("loss", "embeddings", "scale"), exact, dense, found, strict=True):
        size, eps = truth.norm(), 1.2e-7
        allowed = max(1.5 * (one - truth).norm() / size, 4 * eps)
        assert (other - truth).norm() / size <= allowed, name


def extreme(kind: str, loss: Any) -> dict[str, Any]:
    """Opposite: all that is compared is at cosine -1, and exp(-100 - 40) is no float32; long: unnormalised rows."""
    p = problem(70, 16, torch.float32, valid_Mn=None, subject_n=None, pairs_P2=[(0, 2), (1, 0)])
    p["scale_P"] = torch.tensor([100.0, 90.0])
    if kind == "long":
        return p | {"z_MnD": 5 * p["z_MnD"]}
    side = torch.ones(4, 70, 1)
    if loss is contrastive_loss:
        side[0] = -1
    else:  # two groups, each of one subject, so that rows meet the other group only
        p["subject_n"] = (torch.arange(70) >= 35).long()
        side[:, :35] = -1
    return p | {"z_MnD": torch.nn.functional.normalize(side * (p["z_MnD"][:1, :1] + 0.1 * p["z_MnD"]), dim=-1)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["opposite", "long"])
def test_logits_beyond_the_range_of_exponentials_are_done_exactly(loss: Any, kind: str) -> None:
    p = extreme(kind, loss)
    exact = results(loss, p | {"z_MnD": p["z_MnD"].double(), "scale_P": p["scale_P"].double()}, impl="reference")
    for truth, found in zip(exact, results(loss, p, impl="blocks"), strict=True):
        assert (found - truth).norm() <= 1e-4 * truth.norm()  # logits of some hundreds are known to 1e-5
        assert truth.norm() > 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_as_large_as_the_similarities_is_made(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n, total = 300, 600
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel(), x.untyped_storage().nbytes() // x.element_size())
            return out

    p = problem(total, 16, torch.float32)
    columns = Columns(p["z_MnD"].clone().requires_grad_(), p["valid_Mn"], p["subject_n"], p["site_n"])
    rows = {k: v[:, :n] if k in ("z_MnD", "valid_Mn") else v for k, v in p.items()}
    rows |= {"subject_n": p["subject_n"][:n], "site_n": p["site_n"][:n], "negatives": "within_site"}
    monkeypatch.setattr(blocks, "GOOD_ROWS", 64)
    with Sizes():
        loss(**rows, columns=columns, impl="blocks", workspace_bytes=2**17).sum().backward()
    assert 64 * 64 <= largest <= columns.z_MND.numel() < n * total / 4


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_input_gives_the_same_bits(loss: Any) -> None:
    p = problem(200, 48, torch.float32)
    once, again = results(loss, p, impl="blocks"), results(loss, p, impl="blocks")
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("columns", [False, True])
def test_bfloat16_products_are_as_good_as_rounded_embeddings(loss: Any, columns: bool) -> None:
    p = problem(70, 64, torch.float32)
    rounded = p | {"z_MnD": p["z_MnD"].bfloat16().float()}
    if columns:
        p["columns"] = Columns(p["z_MnD"].clone(), p["valid_Mn"], p["subject_n"], p["site_n"])
        rounded["columns"] = Columns(rounded["z_MnD"].clone(), p["valid_Mn"], p["subject_n"], p["site_n"])
    truth, rival = results(loss, p, impl="reference"), results(loss, rounded, impl="reference")
    for exact, one, found in zip(truth, rival, results(loss, p, impl="blocks", precision="bf16"), strict=True):
        assert 0 < (found - exact).norm() <= 1.5 * (one - exact).norm() + 1e-6 * exact.norm()


def test_bfloat16_embeddings_under_autocast_are_multiplied_in_float32() -> None:
    p = problem(100, 32, torch.bfloat16)
    expected = results(contrastive_loss, p, impl="blocks")
    with torch.autocast("cpu", torch.bfloat16):
        found = results(contrastive_loss, p, impl="blocks")
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_embeddings_changed_before_the_backward_pass_are_noticed(loss: Any) -> None:
    p = problem(12, 8, valid_Mn=None)
    z = p["z_MnD"].requires_grad_() * 1
    out = loss(**(p | {"z_MnD": z}), impl="blocks").sum()
    with torch.no_grad():
        z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["valid_Mn", "subject_n"])
def test_masks_changed_before_the_backward_pass_are_noticed(loss: Any, name: str) -> None:
    p = problem(12, 8)
    out = loss(**(p | {"z_MnD": p["z_MnD"].requires_grad_()}), impl="blocks").sum()
    p[name][::2] = p[name][1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize(("n", "bytes_more"), [(40, 0), (40, 40 * 6 * 8 - 1), (600, 0)])
def test_groups_of_pairs_fill_the_workspace_and_go_not_beyond_it(n: int, bytes_more: int) -> None:
    """In float64; some rows are taken whatever the memory, because products of fewer are slow."""
    pairs, width, room = 9, 6, 7 if n == 40 else 0
    every = SimpleNamespace(a=list(range(pairs)), z_MnD=torch.empty(2, n, width))
    plan = blocks.Plan(plain, "fp32", 8 * width * n * room + bytes_more)
    pieces = list(blocks.groups(every, plan))  # type: ignore[arg-type]
    places = [(p, i) for some, rows in pieces for p in range(pairs)[some] for i in range(n)[rows]]
    assert sorted(places) == [(p, i) for p in range(pairs) for i in range(n)]
    sizes = [(len(range(pairs)[some]), len(range(n)[rows])) for some, rows in pieces]
    assert max(sizes) == ((7, 40) if n == 40 else (1, min(n, blocks.GOOD_ROWS)))


@pytest.mark.parametrize("loss", LOSSES)
def test_negative_weights_count(loss: Any) -> None:
    p = problem(40, 8, weight_P=torch.tensor([1.0, -1.0, 0.0, -0.5]))
    expected = results(loss, p, impl="reference")
    torch.testing.assert_close(results(loss, p, impl="blocks"), expected, rtol=1e-10, atol=1e-13)
    assert expected[0][1] < 0


@pytest.mark.parametrize("loss", LOSSES)
def test_scales_and_weights_of_any_stride_count(loss: Any) -> None:
    p = problem(20, 8, pairs_P2=[(0, 1), (1, 2), (0, 2)])
    strided = {"scale_P": torch.tensor([[15.0, 1.0]] * 3).double()[:, 0], "weight_P": torch.tensor([0.7]).expand(3)}
    plain = {name: x.contiguous() for name, x in strided.items()}
    expected = results(loss, p | plain, impl="reference")
    torch.testing.assert_close(results(loss, p | strided, impl="blocks"), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("poison", ["embeddings", "one row", "scale nan", "scale inf"])
def test_what_is_no_number_stays_none(loss: Any, poison: str) -> None:
    p = problem(20, 8, pairs_P2=[(0, 1)], scale_P=torch.tensor([10.0]).double(), valid_Mn=None, subject_n=None)
    if poison == "embeddings":
        p["z_MnD"][:] = torch.nan
    elif poison == "one row":
        p["z_MnD"][0, 3] = torch.nan
    else:
        p["scale_P"][:] = torch.tensor(float(poison.removeprefix("scale ")))
    value, grad, _ = results(loss, p, impl="blocks")
    assert value.isnan().all()
    assert not grad.isfinite().all()


def operations(loss: Any, n: int, total: int, pairs: int, impl: str) -> int:
    """Operations of both passes but for views, on tensors without values: what would wait for a device fails."""
    count = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            count += not func.is_view and func not in (
                torch.ops.aten.empty.memory_format,
                torch.ops.aten.detach.default,
            )
            return func(*args, **(kwargs or {}))

    with torch.device("meta"):
        z, columns = torch.empty(12, n, 64, requires_grad=True), torch.empty(12, total, 64, requires_grad=True)
        valid, everywhere = torch.empty(12, n, dtype=torch.bool), torch.empty(12, total, dtype=torch.bool)
        keys, all_keys = torch.empty(n, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
        scale = torch.empty(pairs, requires_grad=True)
        chosen = [(i, j) for i in range(12) for j in range(i)][:pairs]
        gathered = Columns(columns, everywhere, all_keys)
        with Count():
            loss(z, chosen, scale, valid_Mn=valid, subject_n=keys, columns=gathered, impl=impl).sum().backward()
    return count


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("n", "total", "pairs"), [(64, 512, 30), (512, 4096, 15)])
def test_all_pairs_share_launches_where_blocks_are_small(loss: Any, n: int, total: int, pairs: int) -> None:
    assert operations(loss, n, total, pairs, "auto") <= operations(loss, n, total, pairs, "reference")


def test_retrieval_in_parts_is_retrieval_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(90, 6)
    p = {name: p[name] for name in ("z_MnD", "pairs_P2", "valid_Mn", "subject_n")}
    expected = retrieval_accuracy(**p)
    monkeypatch.setattr(losses, "RETRIEVAL_SIMILARITIES", 90 * 4 * 7)
    torch.testing.assert_close(retrieval_accuracy(**p), expected, rtol=1e-12, atol=0)
    assert expected[0] > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_what_runs_is_said_once(loss: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._announced.clear()
    caplog.set_level(logging.INFO, logger="mcsp.kernels.dispatch")
    p = problem(12, 8)
    results(loss, p)
    results(loss, p)
    monkeypatch.setattr(dispatch, "TABLE", [row._replace(most=row.most and 12 * 12 - 1) for row in dispatch.TABLE])
    results(loss, p)
    said = [record.getMessage() for record in caplog.records]
    name = loss.__name__
    assert said == [f"{name} runs as reference (precision fp32)", f"{name} runs as blocks (precision fp32)"]


@pytest.mark.parametrize("loss", LOSSES)
def test_an_implementation_that_cannot_run_is_refused_with_the_reason(loss: Any) -> None:
    with pytest.raises(ValueError, match="impl: expected one of auto, triton, blocks, reference, found 'dense'"):
        loss(**problem(4, 8), impl="dense")
    with pytest.raises(ValueError, match=f"{loss.__name__}: impl='triton' cannot run: "):
        loss(**problem(4, 8), impl="triton")
