"""Weights and moments on disk: one safetensors file per rank, of ranges of flattened parameters. Nothing is unpickled.

A tensor is called ``<kind>/<start>/<parameter>`` and holds ``[start, start + length)`` of the flattened parameter in
float32; the file's metadata has the shapes of the whole parameters and AdamW's step. ``ranges.json`` beside the files
says who wrote what, so that any number of ranks reads what any other number wrote, each only the ranges that it owns
and of the files only those that hold them. Without it (checkpoints of before) all files are opened.

What a rank owns are ranges of whole parameters, as DeepSpeed 0.19 lays them out. Beside ``engine.py`` this is the only
file that knows DeepSpeed's internals, all of them attributes of its optimizers; nothing is imported. A checkpoint made
of such ranges names no rank and no ZeRO stage, so any other number of ranks at any other stage can read it; DeepSpeed's
own checkpoints are pickles for one number of ranks at one stage.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcsp import distributed
from mcsp.outside import read_object

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


STATE_DIR, RANGES = "state", "ranges.json"
EMA = "ema"  # the kind of a moving average of the weights, where a run keeps one
_METADATA = "mcsp"


class Copied(NamedTuple):
    """A rank's state in the host's memory, which later steps do not change."""

    values: dict[str, Tensor]  # by <kind>/<start>/<parameter>, flat, float32
    shapes: dict[str, list[int]]  # of whole parameters
    ranges: list[tuple[str, int, int]]  # parameter, start, length
    steps: int  # that AdamW has taken


def copy_state(fragments: Iterable[Fragment], steps: int) -> Copied:
    """Copy what this rank owns."""
    copied = Copied({}, {}, [], steps)
    for fragment in fragments:
        copied.shapes[fragment.name] = list(fragment.shape)
        copied.ranges.append((fragment.name, fragment.start, fragment.values["weight"].numel()))
        for kind, value in fragment.values.items():
            on_host = value.detach().to("cpu", torch.float32, copy=True)
            copied.values[f"{kind}/{fragment.start}/{fragment.name}"] = on_host
    return copied


def write_state(folder: Path, rank: int, copied: Copied) -> Path:
    """Write a rank's file below ``folder``; ``OSError`` or ``SafetensorError`` where the disk does not take it."""
    path = folder / STATE_DIR / f"rank-{rank:05d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One entry: the order of several changes from file to file, and equal states are to have equal digests.
    metadata = {_METADATA: json.dumps({"steps": copied.steps, "shapes": copied.shapes})}
    save_file(copied.values, path, metadata=metadata)
    return path


def write_ranges(folder: Path, copies: Iterable[tuple[str, Copied]]) -> Path:
    """Write what each file (name, what was copied into it; values are not looked at) holds; returns the list's path."""
    shapes: dict[str, list[int]] = {}
    files, steps = {}, 0
    for name, copied in copies:
        shapes |= copied.shapes
        files[name], steps = copied.ranges, max(steps, copied.steps)
    number = {name: i for i, name in enumerate(shapes)}
    numbered = {file: [(number[n], start, length) for n, start, length in ranges] for file, ranges in files.items()}
    path = folder / STATE_DIR / RANGES
    path.write_text(json.dumps({"steps": steps, "shapes": shapes, "files": numbered}, separators=(",", ":")))
    return path


class State:
    """The state of one checkpoint, read range by range."""

    def __init__(self, checkpoint_dir: Path) -> None:
        """Read what is where.

        Raises:
            ValueError: no state there, or a file that is not safetensors.
        """
        self.folder = checkpoint_dir / STATE_DIR
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.steps = 0
        self._open: dict[str, Any] = {}  # by file name
        self._pieces: dict[str, list[tuple[int, int, str]]] = {}  # start, length and file, by parameter
        if (self.folder / RANGES).is_file():
            self._read_ranges()
        else:
            self._read_headers()

    def _read_ranges(self) -> None:
        found = read_object(self.folder / RANGES)
        self.steps, names = found["steps"], list(found["shapes"])
        self.shapes = {name: tuple(shape) for name, shape in found["shapes"].items()}
        for file, ranges in found["files"].items():
            for number, start, length in ranges:
                self._pieces.setdefault(names[number], []).append((start, length, file))

    def _read_headers(self) -> None:
        paths = sorted(self.folder.glob("rank-*.safetensors"))
        if not paths:
            raise ValueError(f"{self.folder}: expected files rank-*.safetensors, found none")
        for path in paths:
            file = self._file(path.name)
            metadata = json.loads(file.metadata()[_METADATA])
            self.steps = metadata["steps"]
            self.shapes |= {name: tuple(shape) for name, shape in metadata["shapes"].items()}
            for key in file.keys():  # noqa: SIM118, not a dictionary
                kind, start, name = key.split("/", 2)
                if kind == "weight":
                    length = math.prod(file.get_slice(key).get_shape())
                    self._pieces.setdefault(name, []).append((int(start), length, path.name))

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, "pt")
            except (OSError, SafetensorError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{self.folder / name}: not a safetensors file ({reason})") from None
        return self._open[name]

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """``[start, start + length)`` of a flattened parameter or moment, float32.

        Raises:
            ValueError: the files do not hold all of it.
        """
        out, found = torch.empty(length), 0
        for begin, size, file in self._pieces.get(name, []):
            low, high = max(start, begin), min(start + length, begin + size)
            if low < high:
                values = self._file(file).get_slice(f"{kind}/{begin}/{name}")
                out[low - start : high - start] = values[low - begin : high - begin]
                found += high - low
        if found != length:
            raise ValueError(f"{self.folder}: expected {length} values of {kind} {name} from {start}, found {found}")
        return out

    def has(self, kind: str) -> bool:
        """Whether there is anything of a kind."""
        name, pieces = next(iter(self._pieces.items()))
        start, _, file = pieces[0]
        return f"{kind}/{start}/{name}" in self._file(file).keys()  # noqa: SIM118, not a dictionary

    def whole(self, kind: str, name: str) -> Tensor:
        """A whole parameter or moment in its shape."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, math.prod(shape)).view(shape)

    def into(self, fragments: Iterable[Fragment]) -> None:
        """Fill fragments in place.

        Raises:
            ValueError: a parameter that is not there, or is of another shape.
        """
        for fragment in fragments:
            if self.shapes.get(fragment.name) != fragment.shape:
                raise ValueError(
                    f"{self.folder}: expected {fragment.name} of shape {fragment.shape}, "
                    f"found {self.shapes.get(fragment.name, 'no such parameter')}"
                )
            for kind in KINDS:
                target = fragment.values[kind]
                target.copy_(self.read(kind, fragment.name, fragment.start, target.numel()))


def consolidate_weights(checkpoint_dir: Path, kind: str = "weight") -> dict[str, Tensor]:
    """Whole fp32 weights of the model in a checkpoint of any ZeRO stage and number of ranks, under the names of
    ``MCSP.state_dict()``; without the temperatures, which no downstream task uses.

    Raises:
        ValueError: ``kind`` is :data:`EMA`, and the run kept no average.
    """
    state, prefix = State(checkpoint_dir), "model."
    if not state.has(kind):
        raise ValueError(
            f"{checkpoint_dir}: expected a moving average of the weights, found none; the run needs ema_decay"
        )
    return {n.removeprefix(prefix): state.whole(kind, n) for n in state.shapes if n.startswith(prefix)}
