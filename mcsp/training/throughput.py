"""How fast a run is: samples, hours of signal, floating-point operations and memory.

Shape letters: B rows, C channels, T time samples.
"""

import re
import resource
import sys
import time
from collections.abc import Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcsp.batch import Signal
from mcsp.config import ModelConfig, PretrainConfig
from mcsp.model.mcsp import MCSP
from mcsp.schema import VIEWS, Modality

# Dense bf16 TFLOP/s with fp32 accumulation, without sparsity, from NVIDIA's data sheets of each product (the sheets
# of H100, H200, L40S, L4 and B200 print the figure with sparsity, twice this). The first name that fits counts.
PEAK_BF16_TFLOPS: dict[str, float] = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "H200": 989.4, "GH200": 989.4, "B200": 2250.0, "A100": 312.0,
    "A10": 125.0, "L40S": 362.1, "L4": 121.0, "RTX A6000": 154.8,
}  # fmt: skip


def peak_tflops(device: torch.device) -> float | None:
    """Peak of this device; ``None`` where it is not in the table (a CPU, say), so that no utilisation is claimed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_BF16_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def window_flops(model: ModelConfig, shapes: Mapping[Modality, tuple[int, int]], hz: Mapping[Modality, float]) -> dict:
    """Operations of encoding and projecting one view of one window, forward and backward, by modality.

    Counted by ``torch.utils.flop_counter`` on a model of this configuration, run once on the CPU: products of matrices,
    attention (as the two products it consists of) and convolutions; two per multiplication with addition. Not counted:
    FFTs, elementwise work, the objective, the second forward pass of gradient caching and of activation
    checkpointing, because a utilisation should not rise by work that could be saved.

    Args:
        model: architecture.
        shapes: channels and time samples of a window, without padding.
        hz: sampling rate.
    """
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        module = MCSP(model)
        counts = {}
        for modality, shape in shapes.items():
            if modality in model.modalities:
                with FlopCounterMode(display=False) as counter:
                    for domain in model.domains:
                        h_BD = module.encode_domain(modality, domain, _some_window(shape, hz[modality]))
                        module.project(modality, domain, h_BD).sum().backward()
                counts[modality] = counter.get_total_flops()
    return counts


def _some_window(shape: tuple[int, int], hz: float) -> Signal:
    x_BCT = torch.randn(1, *shape)
    valid_BC = torch.ones(1, shape[0], dtype=torch.bool)
    return Signal(
        x_BCT=x_BCT, sfreq_B=torch.tensor([float(hz)]), channel_valid_BC=valid_BC,
        time_valid_BT=torch.ones(1, shape[1], dtype=torch.bool), position_BC3=torch.randn(1, shape[0], 3) * 50,
        position_valid_BC=valid_BC, sample_B=torch.zeros(1, dtype=torch.int64), key_B=torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip


class Throughput:
    """Turns seconds per step into speeds of the whole run; operations on padding do not count."""

    def __init__(
        self, config: PretrainConfig, shapes: Mapping[Modality, tuple[int, int]], ranks: int, device: torch.device
    ) -> None:
        batch = config.batch
        self.samples = batch.paired + batch.eeg + batch.fmri
        windows: dict[Modality, int] = {"eeg": batch.paired + batch.eeg, "fmri": batch.paired + batch.fmri}
        self.hours = {m: windows[m] * config.window_seconds[m] / 3600 for m in config.model.modalities}
        rates = {m: shapes[m][1] / config.window_seconds[m] for m in shapes}
        flops = window_flops(config.model, shapes, rates)
        self.tflop_per_rank = sum(len(VIEWS) * windows[m] * flops[m] for m in flops) / ranks / 1e12
        self.peak, self.device = peak_tflops(device), device

    def values(self, seconds_per_step: float) -> dict[str, float]:
        """What to log. ``tflops`` is per rank; ``mfu`` is its share of the device's dense bf16 peak, where known."""
        speed = {
            "samples_per_second": self.samples / seconds_per_step,
            **{f"signal_hours_per_second/{m}": hours / seconds_per_step for m, hours in self.hours.items()},
            "tflops": self.tflop_per_rank / seconds_per_step,
            "memory_gib": peak_memory_gib(self.device),
        }
        if self.peak is not None:
            speed["mfu"] = speed["tflops"] / self.peak
        return speed


def goodput(useful_seconds: float, first_start: float, began: float) -> float:
    """The share of steps that count in the time since the run's first start, within 0 and 1.

    Args:
        useful_seconds: of those steps, over all starts.
        first_start: time of the clock that people set, which may have been set back since.
        began: time of the monotonic clock at which this start began.
    """
    passed = max(time.time() - first_start, time.monotonic() - began, useful_seconds)
    return useful_seconds / passed if passed else 0.0


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this rank has held: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
