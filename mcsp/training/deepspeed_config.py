"""The DeepSpeed JSON of a run: its file, with what the pretraining config says put in."""

import json
import os
import shutil
from typing import Any

import torch

from mcsp.config import PretrainConfig, find_config

_INJECTED = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "bf16", "fp16", "steps_per_print", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "managed_gradient_accumulation",
}  # fmt: skip


def deepspeed_config(config: PretrainConfig, world_size: int, global_batch: int) -> dict[str, Any]:
    """The DeepSpeed JSON with what our own config says put in.

    Raises:
        ValueError: an unreadable file, one that repeats a value that belongs to the pretraining config, or what no run
            can be trained with: offload to NVMe, autocast in float16.
    """
    try:
        values = json.loads(find_config(config.deepspeed).read_text())
    except OSError as error:
        raise ValueError(f"{config.deepspeed}: cannot read the DeepSpeed config ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{config.deepspeed}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{config.deepspeed}: expected a JSON object, found {type(values).__name__}")
    repeated = sorted(_INJECTED & set(values))
    if repeated:
        raise ValueError(f"{config.deepspeed}: {repeated} come from the pretraining config; remove them here")
    on_gpu = os.environ["DS_ACCELERATOR"] == "cuda"
    # Older GPUs emulate bf16, slower than they compute in fp32.
    native = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and native)
    zero, autocast = (_section(config, values, name) for name in ("zero_optimization", "torch_autocast"))
    stage = zero.get("stage", 0)
    if autocast.get("enabled") and autocast.get("dtype") not in ("bfloat16", "bf16", "torch.bfloat16"):
        # Without it a GPU takes float16, whose gradients would be scaled by who knows how much.
        raise ValueError(f"{config.deepspeed}: torch_autocast.dtype: expected bf16, found {autocast.get('dtype')}")
    for part in ("offload_optimizer", "offload_param"):
        where = _section(config, zero, part).get("device", "none")
        if where not in ("none", "cpu"):
            raise ValueError(f"{config.deepspeed}: {part}.device: expected none or cpu, found {where}")
    if config.compile and stage == 3:
        raise ValueError(f"compile=true: expected ZeRO 0-2, found stage 3 in {config.deepspeed}")
    if config.compile and on_gpu is False and not shutil.which("g++"):
        raise ValueError("compile=true: expected a C++ compiler (g++) for CPU code, found none")
    if stage == 1 and world_size == 1:
        # One rank sends nothing; into the buffer to send from DeepSpeed would copy each gradient.
        zero = {"contiguous_gradients": False, **zero}
    if stage == 3:
        # DeepSpeed's own linear layer rounds differently: its gradients are 1.3e-6 away from those of the other stages.
        zero = {"memory_efficient_linear": False, **zero}
    return {
        **values,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": global_batch // world_size,
        "gradient_accumulation_steps": 1,
        # In fp32 at stage 0 DeepSpeed would find every norm again; the engine clips by the one that it has.
        "gradient_clipping": config.gradient_clipping if stage or bf16 else 0.0,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with offload it would insist on its own AdamW, compiled at start
        "steps_per_print": 10**9,
    }


def _section(config: PretrainConfig, values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{config.deepspeed}: {name}: expected a JSON object, found {found!r}")
    return found
