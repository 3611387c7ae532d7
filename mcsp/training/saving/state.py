"""Weights and moments on disk: one safetensors file per rank, of ranges of flattened parameters. Nothing is unpickled.

A tensor is called ``<kind>/<start>/<parameter>`` and holds ``[start, start + length)`` of the flattened parameter in
float32; the file's metadata has the shapes of the whole parameters and AdamW's step. Any number of ranks reads what
any other number wrote, each only the ranges that it owns.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcsp.training.saving.zero_fragments import KINDS, Fragment

STATE_DIR = "state"
_METADATA = "mcsp"


def write_state(folder: Path, rank: int, fragments: Iterable[Fragment], steps: int) -> Path:
    """Write this rank's file below ``folder``; ``OSError`` or ``SafetensorError`` where the disk does not take it."""
    tensors, shapes = {}, {}
    for fragment in fragments:
        shapes[fragment.name] = list(fragment.shape)
        for kind, value in fragment.values.items():
            tensors[f"{kind}/{fragment.start}/{fragment.name}"] = value.detach().to("cpu", torch.float32).clone()
    path = folder / STATE_DIR / f"rank-{rank:05d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    # One entry: the order of several changes from file to file, and equal states are to have equal digests.
    save_file(tensors, path, metadata={_METADATA: json.dumps({"steps": steps, "shapes": shapes})})
    return path


class State:
    """The state of one checkpoint, read range by range."""

    def __init__(self, checkpoint_dir: Path) -> None:
        """Read the headers.

        Raises:
            ValueError: no state there, or a file that is not safetensors.
        """
        self.folder = checkpoint_dir / STATE_DIR
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.steps = 0
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        paths = sorted(self.folder.glob("rank-*.safetensors"))
        if not paths:
            raise ValueError(f"{self.folder}: expected files rank-*.safetensors, found none")
        for path in paths:
            try:
                file = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from None
            metadata = json.loads(file.metadata()[_METADATA])
            self.steps = metadata["steps"]
            self.shapes |= {name: tuple(shape) for name, shape in metadata["shapes"].items()}
            for key in file.keys():  # noqa: SIM118, not a dictionary
                kind, start, name = key.split("/", 2)
                length = math.prod(file.get_slice(key).get_shape())
                self._pieces.setdefault((kind, name), []).append((int(start), length, file, key))

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """``[start, start + length)`` of a flattened parameter or moment, float32.

        Raises:
            ValueError: the files do not hold all of it.
        """
        out, found = torch.empty(length), 0
        for begin, size, file, key in self._pieces.get((kind, name), []):
            low, high = max(start, begin), min(start + length, begin + size)
            if low < high:
                out[low - start : high - start] = file.get_slice(key)[low - begin : high - begin]
                found += high - low
        if found != length:
            raise ValueError(f"{self.folder}: expected {length} values of {kind} {name} from {start}, found {found}")
        return out

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


def consolidate_weights(checkpoint_dir: Path) -> dict[str, Tensor]:
    """Whole fp32 weights of the model in a checkpoint of any ZeRO stage and number of ranks, under the names of
    ``MCSP.state_dict()``; without the temperatures, which no downstream task uses."""
    state, prefix = State(checkpoint_dir), "model."
    return {n.removeprefix(prefix): state.whole("weight", n) for n in state.shapes if n.startswith(prefix)}
