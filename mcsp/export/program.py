"""Programs of an encoder that run without this package: ``.pt2`` of torch.export and ONNX.

A program belongs to one modality, one sampling rate and one length of windows, because the model reads rates and masks
of time in Python and a graph holds what Python decided. Batches of any size and up to as many channels as it was
recorded for go in; positions, values and which channels count are inputs.

One row is recorded, then mapped over a batch by ``torch.vmap``. The matrix logarithm is made of products
(:mod:`mcsp.model.tangent`), for eigenvectors are no operator of ONNX.

Shape letters: B rows, C channels, T time samples, F features.
"""

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from mcsp.batch import Signal
from mcsp.model.mcsp import MCSP
from mcsp.model.spatial import SpatialEncoder
from mcsp.schema import UNITS, Modality

# How far features may be from the model's, relative L2 norm of each part. ONNX Runtime transforms in single precision.
_BOUND, _ONNX_BOUND = 1e-5, 1e-4
METADATA = "mcsp.json"  # a file inside .pt2, a property of ONNX
INPUTS = ("x_BCT", "position_BC3", "channel_valid_BC")


class EncoderProgram(nn.Module):
    """``(x_BCT, position_BC3, channel_valid_BC) -> features_BF`` of one modality at one rate; all time is valid.

    ``x_BCT`` in uV or percent, positions in mm; all three zeros of a channel's position mean that it is not known.
    """

    def __init__(self, model: MCSP, modality: Modality, sfreq: float) -> None:
        super().__init__()
        self.model, self.modality, self.sfreq = model, modality, sfreq

    def forward(self, x_BCT: Tensor, position_BC3: Tensor, channel_valid_BC: Tensor) -> Tensor:
        """Features ``(B, F)``."""
        rows, _, n_samples = x_BCT.shape
        signal = Signal(
            x_BCT=x_BCT * channel_valid_BC[:, :, None], sfreq_B=torch.full((rows,), self.sfreq),
            channel_valid_BC=channel_valid_BC, time_valid_BT=torch.ones(rows, n_samples, dtype=torch.bool),
            position_BC3=position_BC3, position_valid_BC=channel_valid_BC & (position_BC3 != 0).any(-1),
            sample_B=torch.arange(rows), key_B=torch.zeros(rows, dtype=torch.int64),
        )  # fmt: skip
        return self.model.features({self.modality: signal})[self.modality]


@dataclass(frozen=True)
class Recorded:
    """A graph, what it was recorded from, and what it takes."""

    exported: torch.export.ExportedProgram
    program: EncoderProgram
    channels: int  # at most
    samples: int  # exactly

    def description(self) -> dict[str, Any]:
        """What goes in and comes out, as JSON types."""
        program = self.program
        return {
            "modality": program.modality,
            "sfreq_hz": program.sfreq,
            "window_seconds": self.samples / program.sfreq,
            "channels_at_most": self.channels,
            "inputs": {
                "x_BCT": ["any", f"1 to {self.channels}", self.samples],
                "position_BC3": ["any", f"1 to {self.channels}", 3],
                "channel_valid_BC": ["any", f"1 to {self.channels}"],
            },
            "units": {
                "x_BCT": UNITS[program.modality], "position_BC3": "mm, zeros where unknown", "channel_valid_BC": "bool"
            },
            "features_BF": program.model.feature_widths(program.modality),
        }  # fmt: skip

    def check(self, run: Callable[..., Tensor], bound: float, name: str) -> None:
        """Raise ``ValueError`` unless ``run`` gives the model's features for other batches than the recorded one.

        Every part of the features is compared, so that a wide one cannot hide a narrow one.
        """
        widths = self.program.model.feature_widths(self.program.modality)
        for rows, channels in ((1, min(self.channels, 4)), (3, self.channels)):
            inputs = example_inputs(self.program.modality, channels, self.samples, seed=rows, rows=rows)
            inputs[2][-1, : channels // 3] = False
            with torch.no_grad():
                both = run(*inputs), self.program(*inputs)
            parts = zip(widths, *(x.split(list(widths.values()), -1) for x in both), strict=True)
            for part, found, expected in parts:
                error, size = float((found - expected).norm()), float(expected.norm())
                if not error <= bound * size:  # too few channels have no connectivity: zeros
                    error /= size or 1.0
                    raise ValueError(
                        f"{name}: {part} of {rows} windows of {channels} channels differs from the model's by "
                        f"{error:.1e}, expected less than {bound:g}"
                    )


class _Batched(nn.Module):
    """The recorded row, over a batch and filled up with channels that do not count."""

    def __init__(self, row: nn.Module, channels: int) -> None:
        super().__init__()
        self.row, self.channels = row, channels

    def forward(self, x_BCT: Tensor, position_BC3: Tensor, channel_valid_BC: Tensor) -> Tensor:
        def filled(part: Tensor) -> Tensor:
            # By index, so that more channels than fit are an error in ONNX too, which has no guards.
            empty = part.new_zeros((self.channels, part.shape[0], *part.shape[2:]))
            return empty.index_put((torch.arange(part.shape[1]),), part.transpose(0, 1)).transpose(0, 1)

        def one(x_CT: Tensor, position_C3: Tensor, channel_valid_C: Tensor) -> Tensor:
            features_BF: Tensor = self.row(x_CT[None], position_C3[None], channel_valid_C[None])
            return features_BF[0]

        found: Tensor = torch.vmap(one)(filled(x_BCT), filled(position_BC3), filled(channel_valid_BC))
        return found


def example_inputs(
    modality: Modality, channels: int, samples: int, seed: int = 0, rows: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs of a program: noise on positions of the size of a head, the last channel without a position."""
    generator = torch.Generator().manual_seed(seed)
    x_BCT = (10.0 if modality == "eeg" else 1.0) * torch.randn(rows, channels, samples, generator=generator)
    position_BC3 = 60 * torch.randn(rows, channels, 3, generator=generator)
    position_BC3[:, -1] = 0.0
    return x_BCT, position_BC3, torch.ones(rows, channels, dtype=torch.bool)


# torch.vmap's own rules for these three take the size of the batch as a constant.
def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    mean = x.mean(-1, keepdim=True)
    scale = ((x - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x - mean) * scale * weight + bias, mean, scale


def _gather(x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    places = [
        torch.arange(size).view([-1 if d == axis else 1 for d in range(index.ndim)])
        for axis, size in enumerate(index.shape)
    ]
    places[dim] = index
    return x[tuple(places)]


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim %= parts[0].ndim
    after, before, total = sum(part.shape[dim] for part in parts), 0, None
    for part in parts:
        after -= part.shape[dim]
        wide = F.pad(part, [0, 0] * (part.ndim - 1 - dim) + [before, after])
        before += part.shape[dim]
        total = wide if total is None else total + wide
    assert total is not None
    return total


_PLAIN: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.gather.default: _gather,
    torch.ops.aten.cat.default: _cat,
}


def _reshape_freely(graph: torch.fx.GraphModule) -> None:
    """Let every view copy where it has to: under torch.vmap a tensor's memory lies in another order."""
    for node in graph.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    graph.recompile()


_READS = {
    getattr(Tensor, name) for name in ("tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__complex__")
}


class _ValuesAreRead(TorchFunctionMode):
    """While a graph is recorded, Python may look at values: those it looks at (rates, masks of time) are constants.

    Of this thread and inside of the block alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READS:
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def record(program: EncoderProgram, channels: int, samples: int) -> Recorded:
    """The program as a graph for windows of up to ``channels`` and of ``samples``.

    Raises:
        ValueError: the graph does not give the model's numbers on windows that it was not recorded from.
    """
    own = copy.deepcopy(program).eval()
    own.requires_grad_(False)
    for part in own.modules():
        if isinstance(part, SpatialEncoder):
            part.by_products = True
    inputs = example_inputs(program.modality, channels, samples)
    batch = example_inputs(program.modality, max(2, channels - 2), samples, rows=2)
    rows, some = torch.export.Dim("batch", min=1, max=65536), torch.export.Dim("channels", min=1, max=channels)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Attention as products and a softmax: the fused operators belong to one kind of device.
        with _ValuesAreRead(), sdpa_kernel(SDPBackend.MATH):
            graph = make_fx(own, tracing_mode="real")(*inputs)
        plain = make_fx(torch.func.functionalize(graph), tracing_mode="real", decomposition_table=_PLAIN)(*inputs)
        shapes = {name: {0: rows, 1: some} for name in INPUTS}
        _reshape_freely(plain)
        exported = torch.export.export(_Batched(plain, channels), batch, dynamic_shapes=shapes, strict=False)
    for part in exported.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # names files of this machine, and would go into every format
    recorded = Recorded(exported, program, channels, samples)
    recorded.check(exported.module(), _BOUND, program.modality)
    return recorded


def write_program(recorded: Recorded, path: Path) -> None:
    """Write a ``.pt2`` file, load it and compare; ``torch.export.load(path).module()`` runs it with torch alone.

    Raises:
        ValueError: what was loaded gives other numbers than the model.
    """
    described = {METADATA: json.dumps(recorded.description())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(recorded.exported, path, extra_files=described)
        recorded.check(torch.export.load(path).module(), _BOUND, path.name)


def write_onnx(recorded: Recorded, path: Path) -> None:
    """Write an ONNX file with inputs :data:`INPUTS` and output ``features_BF``; compare where ONNX Runtime is there.

    Raises:
        ValueError: onnxscript is not installed, an operator has no ONNX counterpart, or other numbers than the model's;
            one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                recorded.exported, (), input_names=INPUTS, output_names=["features_BF"], dynamo=True, verbose=False,
                optimize=False,  # it takes minutes over the logarithm, and ONNX Runtime optimises when it loads
            )  # fmt: skip
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX needs the extra onnx: pip install 'mcsp-pretraining[onnx]' ({error})") from None
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path.name}: no ONNX ({' '.join(str(cause).split())[:300]})") from None
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(recorded.description())
    program.save(path, external_data=False)
    if find_spec("onnxruntime") is not None:
        recorded.check(_onnx_session(path), _ONNX_BOUND, path.name)


def _onnx_session(path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not every constant that it cannot fold
    session = onnxruntime.InferenceSession(path, options)

    def run(*inputs: Tensor) -> Tensor:
        named = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    return run
