"""The only file that imports DeepSpeed, with every detail of it that the project depends on.

Facts about DeepSpeed 0.19 that are worked around here, each with a test in ``tests/training/test_engine.py``:
the CPU accelerator compiles a shared-memory extension at start; gradients are averaged over ranks, so shares of a loss
are multiplied by the number of ranks; ``gradient_clipping`` defaults to 1; at stage 0 in fp32 no gradient norm is kept.
"""

import ctypes
import logging
import math
import os
import signal
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
# torch 2.13 renames collectives that DeepSpeed 0.19 and we (torch 2.11 knows no other name) call by their old names.
warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.* is deprecated.*")

import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402
from deepspeed.runtime.utils import combine_grad_norm_groups  # noqa: E402

from mcsp import distributed  # noqa: E402
from mcsp.batch import Batch  # noqa: E402
from mcsp.config import PretrainConfig  # noqa: E402
from mcsp.schema import text_key  # noqa: E402
from mcsp.training.deepspeed_config import deepspeed_config  # noqa: E402
from mcsp.training.pretrainer import group_of  # noqa: E402
from mcsp.training.saving import state as fragments  # noqa: E402
from mcsp.training.saving.state import EMA, Copied, State, copy_state  # noqa: E402
from mcsp.wording import listed  # noqa: E402

# It reports steps that are refused here as overflows, and much else; what goes wrong it raises.
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers of malloc.h


def use_device() -> torch.device:
    """Make the device of this rank the current one, before anything is put on a device or sent; idempotent.

    Every process begins with the first GPU as its current device, and NCCL refuses two ranks on one.

    Raises:
        ValueError: this host has fewer GPUs than ranks.
    """
    own = device()
    if own.type == "cuda":
        found = torch.cuda.device_count()
        if found <= own.index:
            raise ValueError(
                f"{socket.gethostname()}: rank {os.environ.get('RANK', 0)} needs GPU {own.index} (LOCAL_RANK), found "
                f"{found} GPUs; start no more ranks on a host than it has GPUs, or set CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(own)
    return own


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensors of this process; nothing where there is no glibc.

    It gives large blocks back to the system, and then a pass over a tensor on a CPU costs less than its fresh pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def device_name() -> str:
    """What computes: the GPU's name, or cpu."""
    return torch.cuda.get_device_name(device()) if device().type == "cuda" else "cpu"


def start_process_group() -> None:
    """Join the process group that the launcher describes, or make one of a single process. Idempotent."""
    if use_device().type == "cpu":
        keep_freed_memory()
    if "RANK" in os.environ:
        # kill -9 of the launcher would leave its ranks running: they save and end, as if they were asked to.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if torch.distributed.is_initialized():
        return
    # Compiling the shared-memory collectives takes 26-60 s and a C++ compiler, for no gain at two ranks.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        os.environ.update({name: str(value) for name, value in alone.items()})
    on_gpu = os.environ["DS_ACCELERATOR"] == "cuda"
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)


def stop_process_group() -> None:
    """Leave the process group in order."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def device() -> torch.device:
    """The device of this rank."""
    if os.environ["DS_ACCELERATOR"] == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def collectives() -> object:
    """What DeepSpeed communicates through; for :meth:`mcsp.training.clock.Clock.watch_collectives`."""
    return deepspeed.comm.comm.cdb


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, scales and temperatures do not."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class Engine:
    """One module trained by DeepSpeed with AdamW; weight decay on matrices only."""

    def __init__(self, module: nn.Module, config: PretrainConfig, world_size: int, global_batch: int) -> None:
        groups = parameter_groups(module, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        values = deepspeed_config(config, world_size, global_batch)
        self.zero_stage: int = values.get("zero_optimization", {}).get("stage", 0)
        with_autocast = values.get("torch_autocast", {}).get("enabled", False)
        products: str = config.objective.precision
        products = products if products != "auto" else "autocast's" if with_autocast else "fp32"
        of_model = "bf16" if values["bf16"]["enabled"] else "fp32"
        self.arithmetic = f"{of_model} on {device_name()}, products of the contrast {products}"
        self.world_size = world_size
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=values)
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._parameters = list(module.parameters())
        self._clipping = 0.0 if self.zero_stage or values["bf16"]["enabled"] else config.gradient_clipping
        # One rank at stage 0 has no other's gradients to add; DeepSpeed would copy all of them there and back.
        self._engine.enable_backward_allreduce = self.zero_stage > 0 or world_size > 1
        self._steps = 0
        self._norm, self._refused = 0.0, False
        self._told, self._found, self._numbers = torch.zeros(0), torch.zeros(0), list[float]()
        self._allowed: Callable[[float, list[float]], bool] | None = None  # None: any
        self.ema_decay = config.ema_decay
        self._ema: dict[tuple[str, int], Tensor] = {}  # of the ranges that this rank owns
        if self.zero_stage:
            self._watch_norm()
        else:
            fragments.undo_first_step(self._engine)

    def __call__(self, batch: Batch) -> Any:
        """Forward pass of the module.

        Raises:
            ValueError: as of :meth:`backward`, where the ranks' batches hold different modalities.
        """
        if self._checks():
            # ZeRO-3 gathers parameters in the forward pass: asked for different ones, it would wait for ever.
            self._same_on_all_ranks("modalities of the batch", set(batch.signals))
        return self._engine(batch)

    def _checks(self) -> bool:
        """Whether this step compares the ranks: the first three do, then every thousandth."""
        return self.world_size > 1 and (self._steps < 3 or self._steps % 1000 == 0)

    def _same_on_all_ranks(self, what: str, found: set[str]) -> None:
        """DeepSpeed adds up gradients by their place in a buffer: ranks that fill it differently corrupt weights."""
        key = torch.tensor([text_key("\n".join(sorted(found)))], device=device())
        low, high = key.clone(), key.clone()
        with distributed.around_collectives():
            torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
            torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
        if bool(low == high):
            return
        everyone = distributed.gather_objects(found)
        union = set().union(*everyone)
        missing = {rank: sorted(union - own) for rank, own in enumerate(everyone) if union - own}
        rank, names = next(iter(missing.items()))
        raise ValueError(
            f"{what}: expected the same on all {self.world_size} ranks, rank {rank} lacks " + listed(names, 3)
        )

    def backward(self, share: Tensor, last: bool = True) -> None:
        """Backward pass of this rank's share of the loss (shares sum to the loss; DeepSpeed averages gradients).

        Gradients add up over calls until one that is ``last`` before a step; without this ZeRO-1 and 2 keep only the
        gradients of the final call.

        Raises:
            ValueError: in a step that is checked, ranks whose losses depend on different parameters.
        """
        if self._checks():
            self._same_on_all_ranks("parameters with a gradient", self._depends_on(share))
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(share * self.world_size)

    def _depends_on(self, share: Tensor) -> set[str]:
        """Names of the parameters that a backward pass would reach, read from its graph."""
        found, seen, left = set(), set(), [share.grad_fn]
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self._names:
                found.add(self._names[id(leaf)])
            left.extend(follower for follower, _ in node.next_functions)
        return found

    def step(
        self,
        learning_rate: float,
        allowed: "Callable[[float, list[float]], bool] | None" = None,
        told: Tensor | None = None,
    ) -> tuple[float, list[float]]:
        """Clip, update, clear gradients, unless the gradient forbids it.

        Args:
            learning_rate: of this step.
            allowed: whether the step is taken, of the norm and of ``told``; asked only where the norm is finite.
                A step that is not taken clears the gradients and changes nothing else.
            told: numbers to read from the device together with the norm, so that it is waited for once; (K,).

        Returns:
            The norm of the whole gradient before clipping, and the numbers of ``told``; rank 0's, on all ranks.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._allowed, self._steps = allowed, self._steps + 1
        self._told = torch.zeros(0, device=device()) if told is None else told.detach()
        if self.zero_stage == 0 and self._refuses(self._stage0_norm()):
            self._engine.optimizer.zero_grad()
        else:
            if self._clipping:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clipping, self._found[0])
            self._engine.step()
        if self.ema_decay and not self._refused:
            self._average()
        return self._norm, self._numbers

    def _average(self) -> None:
        """Move the average of the weights, of which a rank has what it owns of these.

        At first it moves faster, as in TensorFlow's ExponentialMovingAverage: the weights of the start are random.
        """
        weights = {(f.name, f.start): f.values["weight"] for f in fragments.owned(self._engine)}
        steps = fragments.applied_steps(self._engine)
        decay = min(self.ema_decay, (1 + steps) / (10 + steps))
        if not self._ema:
            self._ema = {key: weight.detach().clone() for key, weight in weights.items()}
        torch._foreach_lerp_(list(self._ema.values()), [weights[key].detach() for key in self._ema], 1 - decay)

    def group_norms(self) -> dict[str, float]:
        """Gradient norm before clipping of each encoder, each projection and the rest; between backward and step.

        Every rank calls it. A collective per parameter, so not for every step.
        """
        read: Callable[[nn.Parameter], Tensor | None] = deepspeed.utils.safe_get_full_grad
        squares: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            with distributed.around_collectives():
                gradient = read(parameter)
            if gradient is not None:
                group = group_of(name)
                square = gradient.float().square().sum()
                squares[group] = squares[group] + square if group in squares else square
        return dict(zip(squares, torch.stack(list(squares.values())).sqrt().tolist(), strict=True))

    def _refuses(self, norm: Tensor) -> bool:
        """Remember the numbers that rank 0 found, so that no rounding makes ranks choose differently."""
        self._found = torch.cat([norm.detach().float().reshape(1), self._told])
        with distributed.around_collectives():
            torch.distributed.broadcast(self._found, src=0)
        self._norm, *self._numbers = self._found.tolist()  # the one wait for the device in a step
        allowed = self._allowed is None or self._allowed(self._norm, self._numbers)
        self._refused = not (math.isfinite(self._norm) and allowed)
        return self._refused

    def _watch_norm(self) -> None:
        """Have DeepSpeed discard a step whose norm we refuse: it does so when it finds an infinite one."""
        optimizer = self._engine.optimizer
        name = "_get_norm_groups" if self.zero_stage == 3 else "scaled_global_norm"
        found = getattr(optimizer, name)

        def watched() -> Any:
            norms = found()
            whole = combine_grad_norm_groups(norms if isinstance(norms, list) else [norms])
            infinite = torch.full_like(whole, math.inf)
            if not self._refuses(whole):
                return norms
            return [infinite] if isinstance(norms, list) else infinite

        setattr(optimizer, name, watched)
        if self.zero_stage < 3:
            # Without the first line a bf16 step is taken whatever its norm; the second saves a pass over gradients.
            optimizer.check_grad_overflow = True
            optimizer.check_overflow = lambda **_: None

    def _stage0_norm(self) -> Tensor:
        for parameter in self._parameters:
            if parameter.grad is None:  # as DeepSpeed does where it adds up: AdamW takes a step of it all the same
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # In float32 whatever the gradients: in bf16 the norm would have two digits.
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, torch.float32)))

    def copy_state(self) -> Copied:
        """Copy this rank's part of weights and optimizer state to the host's memory. Every rank calls it.

        At stage 0 every rank has everything, and only the first copies it.
        """
        mine = [] if self.zero_stage == 0 and distributed.rank() else list(fragments.owned(self._engine))
        if self._ema:
            mine = [replace(f, values={**f.values, EMA: self._ema[f.name, f.start]}) for f in mine]
        return copy_state(mine, fragments.applied_steps(self._engine))

    def load(self, folder: Path) -> None:
        """Read what any number of ranks at any ZeRO stage wrote; every rank calls it.

        Raises:
            ValueError: another model, or files that are not all there.
        """
        state, own = State(folder), {name for name, _ in self._engine.module.named_parameters()}
        if unknown := sorted(state.shapes.keys() - own):
            raise ValueError(f"{state.folder}: expected the parameters of this model, found {unknown[:3]} beside them")
        state.into(fragments.owned(self._engine))
        fragments.refresh(self._engine, state.steps)
        self._ema = {}
        if self.ema_decay and state.has(EMA):
            owned = [(f.name, f.start, f.values["weight"]) for f in fragments.owned(self._engine)]
            self._ema = {
                (name, start): state.read(EMA, name, start, weight.numel()).to(weight.device)
                for name, start, weight in owned
            }
