"""Programs of an encoder that run without this package: ``.pt2`` of torch.export, ONNX where operators allow it.

A program belongs to one modality, one sampling rate, and a number of channels and time samples; one window goes in.
All this is fixed because the model groups rows by their rate in Python, and a graph holds what Python decided. Fewer
channels fit: mark the rest as not valid. Everything else (positions, values, which channels count) is an input.

Shape letters: B rows (1), C channels, T time samples, F features.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from mcsp.batch import Signal
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality

_WITHOUT_ONNX = ("linalg_eigh", "linalg_svd")
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
            x_BCT=x_BCT * channel_valid_BC[:, :, None],
            sfreq_B=torch.full((rows,), self.sfreq),
            channel_valid_BC=channel_valid_BC,
            time_valid_BT=torch.ones(rows, n_samples, dtype=torch.bool),
            position_BC3=position_BC3,
            position_valid_BC=channel_valid_BC & (position_BC3 != 0).any(-1),
            sample_B=torch.arange(rows),
            key_B=torch.zeros(rows, dtype=torch.int64),
        )
        return self.model.features({self.modality: signal})[self.modality]


def example_inputs(modality: Modality, channels: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs of a program: noise on positions of the size of a head, the last channel without a position."""
    generator = torch.Generator().manual_seed(seed)
    x_BCT = (10.0 if modality == "eeg" else 1.0) * torch.randn(1, channels, samples, generator=generator)
    position_BC3 = 60 * torch.randn(1, channels, 3, generator=generator)
    position_BC3[:, -1] = 0.0
    return x_BCT, position_BC3, torch.ones(1, channels, dtype=torch.bool)


@contextmanager
def _values_are_read() -> Iterator[None]:
    """While a graph is recorded, Python may look at values: those it looks at (rates, masks of time) are constants."""

    def readable(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *arguments: Any) -> Any:
            with _disable_current_modes():
                return read(tensor, *arguments)

        return call

    names = ("tolist", "item", "__bool__", "__float__", "__int__", "__index__")
    originals = {name: getattr(Tensor, name) for name in names}
    try:
        for name, read in originals.items():
            setattr(Tensor, name, readable(read))
        yield
    finally:
        for name, read in originals.items():
            setattr(Tensor, name, read)


def record(program: EncoderProgram, channels: int, samples: int) -> torch.export.ExportedProgram:
    """The program as a graph for windows of ``channels`` and ``samples``.

    Raises:
        ValueError: the graph does not give the model's numbers on windows that it was not recorded from.
    """
    program = copy.deepcopy(program).eval()
    program.requires_grad_(False)
    inputs = example_inputs(program.modality, channels, samples)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Attention as products and a softmax: the fused operators belong to one kind of device.
        with _values_are_read(), sdpa_kernel(SDPBackend.MATH):
            graph = make_fx(program, tracing_mode="real")(*inputs)
        graph = make_fx(torch.func.functionalize(graph), tracing_mode="real")(*inputs)  # nothing is written in place
        exported = torch.export.export(graph, inputs, strict=False)
        other = example_inputs(program.modality, channels, samples, seed=1)
        other[2][:, : channels // 3] = False
        expected, found = program(*other), exported.module()(*other)
    error = float((found - expected).norm() / expected.norm())
    if not error < 1e-4:
        raise ValueError(f"{program.modality}: the recorded program differs from the model by {error:.1e}")
    return exported


def write_program(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Write a ``.pt2`` file; ``torch.export.load(path).module()`` runs it with torch alone."""
    torch.export.save(exported, path)


def write_onnx(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Write an ONNX file with inputs :data:`INPUTS` and output ``features_BF``.

    Raises:
        ValueError: onnxscript is not installed, or an operator has no ONNX counterpart; one line.
    """
    used = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    without = sorted(name for name in used if any(part in name for part in _WITHOUT_ONNX))
    if without:
        raise ValueError(f"{path.name}: no ONNX: it has no operator for {', '.join(without)} (of the spatial domain)")
    try:
        program = torch.onnx.export(
            exported, (), input_names=INPUTS, output_names=["features_BF"], dynamo=True, verbose=False, optimize=True
        )
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX needs the extra onnx: pip install 'mcsp-pretraining[onnx]' ({error})") from None
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path.name}: no ONNX ({' '.join(str(cause).split())[:300]})") from None
    assert program is not None
    program.save(path, external_data=False)
