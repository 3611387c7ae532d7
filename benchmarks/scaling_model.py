"""Step time, memory and communication for 8 to 1,024 GPUs, by ZeRO stage and model size, from measured pieces.

python benchmarks/scaling_model.py              counts, checks on 1 and 2 ranks here, writes the result file, prints
python benchmarks/scaling_model.py --table      prints the table of docs/scaling.md from the result file

writes benchmarks/results/scaling_model.json. Measured: parameters, floating-point operations and activation bytes per
sample of each size; optimizer bytes and bytes of every collective of DeepSpeed on 1 and 2 gloo ranks at each stage.
Assumed: everything in ASSUMED. The formulas are explained in docs/scaling.md.
"""

import argparse
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcsp.schema import VIEWS, Modality

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "scaling_model.json"
SIZES = ("nano", "small", "base", "large", "huge")
SHAPES: dict[Modality, tuple[int, int]] = {"eeg": (64, 6000), "fmri": (400, 30)}
HZ: dict[Modality, float] = {"eeg": 200.0, "fmri": 0.5}
ASSUMED: dict[str, Any] = {
    "gpu": "H100 SXM, eight per node",
    "peak_tflops": 989.4,  # dense bf16, NVIDIA's data sheet
    "efficiency": 0.3,  # of the peak that the encoders reach: not measured
    "bytes_per_second_in_node": 300e9,  # of each GPU, NCCL bus bandwidth over NVLink (450e9 on paper)
    "bytes_per_second_between_nodes": 40e9,  # of each GPU: one 400 Gb/s adapter per GPU at 80 %
    "seconds_per_hop": 10e-6,  # latency of a collective, times log2 of the ranks
    "collectives_per_step": 20,
    "samples_per_gpu": 64,
    "memory_gib": 80.0,
    "projection_dim": 128,
}


def state_bytes(parameters: int, ranks: int, stage: int, bf16: bool = True) -> dict[str, float]:
    """Bytes per rank of weights, gradients and optimizer state (fp32 weights and two moments of Adam).

    As in the ZeRO paper (arXiv 1910.02054, figure 1). In fp32 the optimizer's own copy of the weights is kept from
    stage 1 on; at stage 0 it is the weights themselves.
    """
    half = 2 if bf16 else 4
    master = 4 if bf16 or stage else 0
    return {
        "weights": half * parameters / (ranks if stage == 3 else 1),
        "gradients": half * parameters / (ranks if stage >= 2 else 1),
        "optimizer": (8 + master) * parameters / (ranks if stage >= 1 else 1),
    }


def collective_bytes(parameters: int, ranks: int, stage: int, passes: int = 1, bf16: bool = True) -> float:
    """Bytes that a rank sends for weights and gradients in one step, with ring collectives.

    A ring sends ``(ranks - 1) / ranks`` of a tensor for a reduce-scatter or an all-gather, twice that for an
    all-reduce. Stage 0: all-reduce of gradients. Stages 1 and 2: that, as measured (the ZeRO paper has a
    reduce-scatter), and an all-gather of weights.
    Stage 3: weights for the forward and for the backward pass, gradients once. ``passes`` counts the forward passes of
    a step that need the weights anew: gradient caching has one more for each micro-batch.
    """
    volumes = {0: 2, 1: 3, 2: 3, 3: passes + 2}[stage]
    return volumes * (2 if bf16 else 4) * parameters * (ranks - 1) / ranks


def contrast_bytes(slots: int, global_batch: int, width: int, ranks: int) -> float:
    """Bytes that a rank sends for the contrast: all-gather of fp32 embeddings, reduce-scatter of their gradient."""
    return 2 * 4 * slots * global_batch * width * (ranks - 1) / ranks


def predict(piece: dict[str, Any], ranks: int, stage: int) -> dict[str, float]:
    """Seconds per step without any overlap, the share of communication in it, and memory of one GPU."""
    a, parameters = ASSUMED, piece["parameters"]
    compute = a["samples_per_gpu"] * piece["flops_per_sample"] / (a["peak_tflops"] * 1e12 * a["efficiency"])
    bandwidth = a["bytes_per_second_in_node"] if ranks <= 8 else a["bytes_per_second_between_nodes"]
    sent = collective_bytes(parameters, ranks, stage)
    sent += contrast_bytes(piece["slots"], ranks * a["samples_per_gpu"], a["projection_dim"], ranks)
    communication = sent / bandwidth + a["collectives_per_step"] * a["seconds_per_hop"] * math.log2(ranks)
    memory = sum(state_bytes(parameters, ranks, stage).values())
    # Activations were counted in fp32.
    memory += a["samples_per_gpu"] * piece["activation_bytes_per_sample"] / 2
    return {
        "seconds": compute + communication,
        "communication_share": communication / (compute + communication),
        "gib": memory / 2**30,
        "sent_gb": sent / 1e9,
    }


def count(size: str) -> dict[str, Any]:
    """Parameters, operations and activation bytes of one paired sample (two views of both windows)."""
    import torch

    from mcsp.config import ModelConfig
    from mcsp.model.mcsp import MCSP
    from mcsp.training.throughput import _some_window, window_flops

    config = ModelConfig(size=size)
    flops = window_flops(config, SHAPES, HZ)
    module = MCSP(config)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    held = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        for modality, shape in SHAPES.items():
            for domain in config.domains:
                h_BD = module.encode_domain(modality, domain, _some_window(shape, HZ[modality]))
                held.append(module.project(modality, domain, h_BD))  # so that no storage is used twice
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "flops_per_sample": len(VIEWS) * sum(flops.values()),
        "flops_per_window": flops,
        "activation_bytes_per_sample": len(VIEWS) * sum(saved.values()),
        "slots": 2 * len(config.modalities) * len(config.domains),
    }


def one_rank(out: str, corpus: str) -> None:
    """Inside a rank: three steps at each stage; bytes of the optimizer and of every collective of the third."""
    import deepspeed
    import torch

    from mcsp import distributed
    from mcsp.config import PretrainConfig
    from mcsp.training import engine
    from mcsp.training.trainer import Trainer

    log = deepspeed.comm.comm.comms_logger
    found = []
    for stage in range(4):
        overrides = [f"corpus_dir={corpus}", f"run_dir={out}-{stage}", "batch={paired: 4, eeg: 0, fmri: 0}"]
        overrides += ["window_seconds={eeg: 10, fmri: 30}", f"deepspeed=configs/deepspeed/zero{stage}.json"]
        trainer = Trainer(PretrainConfig.load(None, overrides))
        trainer.train_step(trainer.dataset[0])
        log.enabled = log.prof_all = True
        log.verbose = False
        log.comms_dict.clear()
        trainer.train_step(trainer.dataset[1])
        log.enabled = False
        collectives = {
            name: sum(int(size) * entry[0] for size, entry in sizes.items()) for name, sizes in log.comms_dict.items()
        }
        inner = trainer.engine._engine.optimizer
        base = getattr(inner, "optimizer", inner)
        tensors = [t for state in base.state.values() for t in state.values() if torch.is_tensor(t) and t.numel() > 1]
        if stage:
            tensors += [p for group in base.param_groups for p in group["params"]]
        found.append(
            {
                "stage": stage,
                "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainer.module.parameters()),
                "optimizer_bytes": sum(t.numel() * t.element_size() for t in tensors),
                "collectives": collectives,
            }
        )
    everyone = distributed.gather_objects(found)
    if distributed.is_main():
        Path(out).write_text(json.dumps(everyone))
    engine.stop_process_group()


def validate(corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Measured against predicted bytes, on 1 and 2 ranks at each stage, in fp32."""
    rows = []
    for ranks in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(ranks):
            env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
            command = [sys.executable, __file__, "--rank", str(folder / f"{ranks}.json"), str(corpus)]
            processes.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL))
        if any([process.wait() for process in processes]):
            raise RuntimeError(f"a rank of {ranks} failed")
        everyone = json.loads((folder / f"{ranks}.json").read_text())
        for stage in range(4):
            of_stage = [rank[stage] for rank in everyone]
            parameters = of_stage[0]["parameters"]
            predicted = state_bytes(parameters, ranks, stage, bf16=False)["optimizer"]
            if stage == 3:  # only the moments are found there
                predicted *= 8 / 12
            rows.append(
                {
                    "ranks": ranks,
                    "stage": stage,
                    "parameters": parameters,
                    "optimizer_bytes": max(m["optimizer_bytes"] for m in of_stage),
                    "optimizer_bytes_predicted": predicted,
                    "sent_bytes": sent(of_stage[0]["collectives"], ranks),
                    "sent_bytes_predicted": collective_bytes(parameters, ranks, stage, bf16=False),
                    "collectives": of_stage[0]["collectives"],
                }
            )
    return rows


def sent(collectives: dict[str, int], ranks: int) -> float:
    """Bytes that a rank sends, with rings, for what the logger of DeepSpeed saw: one rank's part of an all-gather."""
    ring = (ranks - 1) / ranks
    volumes = {"all_reduce": 2, "all_gather_into_tensor": ranks}
    return sum(volumes.get(name, 1) * size * ring for name, size in collectives.items())


def table(results: dict[str, Any]) -> str:
    """The table of docs/scaling.md, in Markdown."""
    lines = [
        "| size | GPUs | stage | s per step | communication | sent, GB | memory, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, piece in results["pieces"].items():
        for ranks in (8, 64, 256, 1024):
            for stage in (1, 3) if size in ("nano", "small") else (0, 1, 2, 3):
                p = predict(piece, ranks, stage)
                fits = "" if p["gib"] < ASSUMED["memory_gib"] else " (too much)"
                lines.append(
                    f"| {size} | {ranks} | {stage} | {p['seconds']:.3f} | {100 * p['communication_share']:.0f} % | "
                    f"{p['sent_gb']:.2f} | {p['gib']:.1f}{fits} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Count, check, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the result file")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        return one_rank(*arguments.rank)
    if not arguments.table:
        from bench_training import commit, make_corpus

        pieces = {size: count(size) for size in SIZES}
        with tempfile.TemporaryDirectory() as folder:
            checks = validate(make_corpus(Path(folder)), Path(folder))
        origin = {
            "script": "benchmarks/scaling_model.py", "date": date.today().isoformat(), "commit": commit(),
            "device": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "versions": {package: version(package) for package in ("torch", "deepspeed")},
            "windows": {"shapes": SHAPES, "hz": HZ}, "assumed": ASSUMED,
        }  # fmt: skip
        RESULT.write_text(json.dumps({**origin, "pieces": pieces, "checks": checks}, indent=1) + "\n")
        print(json.dumps(checks, indent=1))
    print(table(json.loads(RESULT.read_text())))
    return None


if __name__ == "__main__":
    main()
