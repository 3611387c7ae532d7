"""What a rank owns of the weights and moments: ranges of whole parameters, as DeepSpeed 0.19 lays them out.

Beside ``engine.py`` the only file that knows DeepSpeed's internals, all of them attributes of its optimizers; nothing
is imported. A checkpoint made of such ranges names no rank and no ZeRO stage, so any other number of ranks at any other
stage can read it; DeepSpeed's own checkpoints are pickles for one number of ranks at one stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcsp import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weight", *MOMENTS)


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened parameter; ``values`` are flat views into what the optimizer steps on."""

    name: str
    start: int
    shape: tuple[int, ...]  # of the whole parameter
    values: dict[str, Tensor]  # by KINDS, float32, of equal length


def owned(engine: Any) -> Iterator[Fragment]:
    """This rank's fragments; those of all ranks cover every parameter, at stage 0 those of each rank do."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for parameter, shape, whole, offset, start, length in _ranges(engine):
        state = _moments(engine, whole)
        flats = {"weight": whole.data, **{kind: state[kind] for kind in MOMENTS}}
        values = {kind: flat.view(-1).narrow(0, offset, length) for kind, flat in flats.items()}
        yield Fragment(names[id(parameter)], start, tuple(shape), values)


def _ranges(engine: Any) -> Iterator[tuple[Any, torch.Size, Tensor, int, int, int]]:
    """(parameter, shape, tensor that the optimizer steps on, offset in it, start in the parameter, length)."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        for parameter, whole in _masters(engine):
            yield parameter, parameter.shape, whole, 0, 0, parameter.numel()
    elif stage < 3:
        for group, whole in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            for parameter in group:
                mapping = parameter._hp_mapping  # None where this rank owns nothing of it
                if mapping is not None:
                    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                    yield parameter, parameter.shape, whole, here.start, there.start, here.numel
    else:
        for parameter in engine.module.parameters():
            group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = distributed.rank() * padded
            length = min(padded, parameter.ds_numel - start)  # the last ranks hold padding
            if length > 0:
                whole = optimizer.fp32_partitioned_groups_flat[group]
                yield parameter, parameter.ds_shape, whole, offset, start, length


def _masters(engine: Any) -> list[tuple[Any, Tensor]]:
    """At stage 0, each parameter and the tensor that the optimizer steps on: itself, or in bf16 a float32 copy."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        return [(parameter, parameter) for parameter in engine.module.parameters()]
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)  # so called in bf16, too
    return [pair for low, high in groups for pair in zip(low, high, strict=True)]


def undo_first_step(engine: Any) -> None:
    """At stage 0 in bf16 DeepSpeed takes a step with zero gradients when it is made: weights decay, AdamW counts it."""
    if hasattr(engine.optimizer, "fp32_groups"):
        for parameter, whole in _masters(engine):
            whole.data.copy_(parameter.data)
        _base(engine).state.clear()


def _base(engine: Any) -> Any:
    """The torch optimizer, below DeepSpeed's where there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _moments(engine: Any, whole: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a tensor, made as AdamW makes it where no step has been taken yet."""
    state: dict[str, Tensor] = _base(engine).state[whole]
    if not state:
        state["step"] = torch.tensor(0.0)
        state.update({kind: torch.zeros_like(whole) for kind in MOMENTS})
    return state


def applied_steps(engine: Any) -> int:
    """Steps that AdamW has taken, from its bias correction."""
    return int(next((state["step"] for state in _base(engine).state.values() if "step" in state), 0))


def refresh(engine: Any, steps: int) -> None:
    """After writing into the fragments: set AdamW's step and give the module its new weights; every rank calls it."""
    for state in _base(engine).state.values():
        state["step"].fill_(steps)
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        for parameter, whole in _masters(engine):
            parameter.data.copy_(whole.data)
    elif stage < 3:
        optimizer.update_lp_params()
    else:
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small ones, which every rank keeps whole
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.checkpoint_event_epilogue()
