"""Two and four gloo ranks against one process: the loss, every term, feature and temperature gradients.

Covers: mcsp/distributed.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from mcsp.config import ObjectiveConfig
from mcsp.distributed import gather_rows, is_main, over_ranks, rank, world_size
from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import blocks
from mcsp.losses.objective import objective, pair_terms, slots
from mcsp.schema import DOMAINS, MODALITIES
from mcsp.training.prediction import prediction_terms

N = 16
STACK = slots(MODALITIES, DOMAINS)
CASES = (
    "plain",
    "ragged",
    "fmri absent on the first rank",
    "no pair at all",
    "within site",
    "float32",
    "bf16",
    "nothing valid on the first rank",
    "a row of the first rank underflows",
    "everything underflows",
    "not normalised",
)


def case(name: str) -> tuple[dict[str, Tensor], ObjectiveConfig]:
    """The global batch of one case."""
    draw = torch.Generator().manual_seed(CASES.index(name))
    valid = torch.ones(12, N, dtype=torch.bool)
    subject = torch.randint(0, 9, (N,), generator=draw)
    if name == "ragged":
        valid = (torch.rand(2, N, generator=draw) > 0.4).repeat_interleave(6, 0)
    elif name == "fmri absent on the first rank":
        valid[:6, : N // 2] = False
    elif name == "no pair at all":
        valid[:6, ::2], valid[6:, 1::2] = False, False
    elif name == "nothing valid on the first rank":
        valid[:, : N // 2] = False
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}.get(name, torch.float64)
    z = torch.randn(12, N, 8, generator=draw, dtype=torch.float64)
    scale = 1 + 20 * torch.rand(15, generator=draw, dtype=torch.float64)
    if name == "a row of the first rank underflows":  # its columns' sums do not: only this rank sees it
        z[..., 0] += 5
        z[0, 0] *= -1
        scale[::2] = 700
    elif name == "everything underflows":
        scale += 4000
    z = (normalize(z, dim=-1) * (10 if name == "not normalised" else 1)).to(dtype)
    config = ObjectiveConfig(negatives="within_site" if name == "within site" else "all")
    return {
        "z_MnK": z,
        "valid_Mn": valid,
        "error_Qn": torch.rand(8, N, generator=draw, dtype=torch.float64).to(
            torch.float64 if dtype == torch.float64 else torch.float32
        ),
        "scale_P": scale.to(torch.float64 if dtype == torch.float64 else torch.float32),
        "subject_n": subject,
        "site_n": subject % 3,
    }, config


def shares(name: str, rows: slice) -> dict[str, np.ndarray]:
    """Loss, terms and gradients of this process for its rows of a case."""
    b, config = case(name)
    b = {key: value if key == "scale_P" else value[..., rows] for key, value in b.items() if key != "z_MnK"} | {
        "z_MnK": b["z_MnK"][:, rows].clone()
    }
    b["error_Qn"] = b["error_Qn"].clone()
    z, scale, error = (b[key].requires_grad_() for key in ("z_MnK", "scale_P", "error_Qn"))
    predictions = prediction_terms(STACK, config, DOMAINS)
    loss, terms = objective(**b, config=config, terms=pair_terms(STACK, config), predictions=predictions)
    grad_z, grad_scale, grad_error = torch.autograd.grad(loss, (z, scale, error))
    found = {"loss": loss.detach(), "grad_scale": grad_scale, "grad_z": grad_z.float() if name == "bf16" else grad_z}
    found["grad_error"] = grad_error
    return {key: value.numpy() for key, value in (found | terms).items()}


def one_rank(number: int, world: int, folder: str) -> None:
    """What each process runs; a failed assertion here fails the test."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=world)
    assert (rank(), world_size(), is_main()) == (number, world, number == 0)
    size = N // world
    blocks.GOOD_ROWS, dispatch.WORKSPACE_BYTES["cpu"] = 3, 200
    dispatch.TABLE = tuple(row._replace(impl="blocks") for row in dispatch.TABLE)
    for name in CASES:
        found = shares(name, slice(number * size, (number + 1) * size))
        named = {key.replace("/", "|"): value for key, value in found.items()}
        np.savez(f"{folder}/{name}-{number}.npz", **named)
    check_collectives(number, world)
    dist.destroy_process_group()


def check_collectives(number: int, world: int) -> None:
    own = torch.full((2, 3), float(number))
    assert over_ranks(own, "sum").tolist() == [[world * (world - 1) / 2] * 3] * 2
    assert over_ranks(own, "max").tolist() == [[world - 1] * 3] * 2
    assert own.tolist() == [[number] * 3] * 2
    x = torch.arange(6.0).reshape(2, 3) + 10 * number
    x.requires_grad_()
    out = gather_rows(x, dim=1)
    expected = torch.cat([torch.arange(6.0).reshape(2, 3) + 10 * r for r in range(world)], 1)
    assert torch.equal(out.detach(), expected)
    weights = torch.arange(out.numel(), dtype=torch.float32).reshape(out.shape)
    (grad,) = torch.autograd.grad((out * weights * (number + 1)).sum(), x)
    assert torch.equal(grad, weights[:, 3 * number : 3 * number + 3] * (world * (world + 1) / 2))
    assert not gather_rows(x.detach()).requires_grad
    flags = gather_rows(torch.tensor([number], dtype=torch.int64))
    assert flags.tolist() == list(range(world))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    torch.multiprocessing.spawn(one_rank, args=(request.param, str(folder)), nprocs=request.param)
    return request.param, folder


@pytest.mark.multirank
@pytest.mark.parametrize("name", CASES)
def test_shares_of_all_ranks_sum_to_one_process(ranks: tuple[int, Path], name: str) -> None:
    world, folder = ranks
    parts = [dict(np.load(folder / f"{name}-{r}.npz")) for r in range(world)]
    whole = shares(name, slice(0, N))
    rtol = 1e-11 if whole["loss"].dtype == np.float64 else 1e-6
    assert {key.replace("|", "/") for key in parts[0]} == set(whole)
    for key, value in whole.items():
        found = [part[key.replace("/", "|")] for part in parts]
        total = np.concatenate(found, axis=1) if key in ("grad_z", "grad_error") else np.sum(found, axis=0)
        # bf16 gradients themselves are rounded to eight bits, after a sum in another order.
        bound = 2**-7 if (name, key) == ("bf16", "grad_z") else rtol
        assert np.abs(total - value).max() <= bound * max(np.abs(value).max(), 1e-3), key
    assert np.abs(whole["grad_z"]).max() > 0
    assert np.abs(whole["grad_scale"]).max() > 0


def test_one_process_gathers_nothing() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(x, dim=1) is x
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert torch.equal(over_ranks(x, "sum"), torch.ones(2, 3))
