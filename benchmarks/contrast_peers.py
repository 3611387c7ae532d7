"""The contrast of other packages, for ``bench_contrastive.py``, and why one does not run.

`pip install -c constraints.txt -e '.[bench]'` installs them. They have no masks; what is a loss of one direction is
taken twice. Inf-CL multiplies in TF32 whatever it is given, as its kernels leave Triton's default.
"""

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows (N, D) of both embeddings, and the scale, a scalar


def _open_clip() -> Loss:
    """Dense. Its package imports torchvision, whose wheels want a CUDA build of torch; the loss's file torch alone."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("open_clip")
    alone = importlib.util.spec_from_file_location(
        "open_clip_loss", Path(spec.submodule_search_locations[0]) / "loss.py"
    )
    assert alone is not None and alone.loader is not None
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    loss: Loss = module.ClipLoss()
    return loss


def _inf_cl() -> Loss:
    """Flash-like, O(N D) memory; a sum over rows of one direction per call."""
    from inf_cl import cal_flash_loss

    def loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        head = min(256, a.shape[1])
        sides = [cal_flash_loss(x, y, scale=scale, head_dim=head).mean() for x, y in ((a, b), (b, a))]
        return 0.5 * (sides[0] + sides[1])

    return loss


def _liger() -> Loss:
    """A product and its cross-entropy in parts of rows; the gradient is made in the forward pass."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return _one_sided(LigerFusedLinearCrossEntropyLoss())


def _linear_cross_entropy() -> Loss:
    """PyTorch's own, from 2.13 on."""
    linear_cross_entropy = torch.nn.functional.linear_cross_entropy
    return _one_sided(lambda weight, x, target: linear_cross_entropy(x, weight, target))


def _one_sided(cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    def loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        own = torch.arange(len(a), device=a.device)
        return 0.5 * (cross_entropy(b, scale * a, own) + cross_entropy(a, scale * b, own))

    return loss


# Maker, package, and whether it needs a GPU.
PEERS: dict[str, tuple[Callable[[], Loss], str, bool]] = {
    "open_clip": (_open_clip, "open-clip-torch", False),
    "linear_cross_entropy": (_linear_cross_entropy, "torch", False),
    "inf_cl": (_inf_cl, "inf-cl", True),
    "liger": (_liger, "liger-kernel", True),
}


def why_not(name: str, device: str) -> str:
    """Why a peer does not run here; empty where it does."""
    _, package, needs_gpu = PEERS[name]
    if needs_gpu and device != "cuda":
        return "needs a GPU"
    try:
        version(package)
    except PackageNotFoundError:
        return f"{package} is not installed"
    if name == "linear_cross_entropy" and not hasattr(torch.nn.functional, name):
        return f"torch {torch.__version__} has none"
    return ""


def versions() -> dict[str, str | None]:
    """Of the packages; None where one is not installed."""
    found: dict[str, str | None] = {}
    for _, package, _ in PEERS.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
