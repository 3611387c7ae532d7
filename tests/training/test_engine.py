"""DeepSpeed against plain PyTorch, stages and numbers of ranks against each other, and runs that are continued.

Covers: mcsp/training/deepspeed_config.py, mcsp/training/run.py, mcsp/training/saving/state.py
"""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch

from mcsp.config import PretrainConfig
from mcsp.run_log import read_metrics
from mcsp.training import engine
from mcsp.training.clock import COLLECTIVES, Clock
from mcsp.training.pretrainer import MAX_SCALE, Pretrainer
from mcsp.training.run import pretrain
from mcsp.training.saving import checkpoint
from tests.training import golden
from tests.training.ranks import run_ranks

HERE = Path(__file__).parent
PARITY, RESUME, VIOLATION = (HERE / f"{name}_program.py" for name in ("parity", "resume", "violation"))


def zero(name: str) -> str:
    return f"deepspeed=configs/deepspeed/zero{name}.json"


def parity(tmp_path: Path, world: int, steps: int, cases: dict[str, list[str]], overrides: list[str]) -> dict:
    out = tmp_path / f"world{world}.json"
    run_ranks(world, PARITY, str(out), json.dumps(list(cases.items())), str(steps), *overrides, seconds=900)
    return json.loads(out.read_text())


@pytest.mark.multirank
def test_ranks_zero_stages_and_micro_batches_equal_plain_torch(pretrain_overrides, tmp_path) -> None:
    """One step of each, so that nothing but the gradient and one update is between the two."""
    cases = {f"{stage}-{n}": [zero(str(stage)), f"micro_batches={n}"] for stage, n in product(range(4), (1, 2))}
    for world in (1, 2):
        results = parity(tmp_path, world, 1, cases, pretrain_overrides)
        for name in cases:
            (found,), (rounding,) = results[name], results[f"float64 {name}"]
            assert rounding["gradient"] < 3e-6, "single precision itself is further from float64 than it was"
            check_step(found, rounding["gradient"], f"{world} ranks, ZeRO stage and micro-batches {name}")


def check_step(found: dict[str, float], rounding: float, where: str) -> None:
    assert found["total"] < 1e-6, f"{where}: loss or a term differs by {found['total']:.1e}"
    # Micro-batches of one row round differently, but no worse than single precision does.
    assert found["gradient"] < max(1e-6, 1.5 * rounding), f"{where}: gradient differs by {found['gradient']:.1e}"
    assert found["worst_parameter"] < 1e-4, f"{where}: one parameter's gradient by {found['worst_parameter']:.1e}"
    assert found["norm"] < 1e-5, f"{where}: gradient norm by {found['norm']:.1e}"
    assert found["weights"] < 3e-6, f"{where}: weights differ by {found['weights']:.1e}"


BOUNDS = {"total": (1e-6, 3e-5), "norm": (1e-5, 1e-5), "weights": (3e-6, 5e-6)}  # of even and odd steps


@pytest.mark.slow
@pytest.mark.multirank
def test_six_steps_of_every_combination_equal_plain_torch(pretrain_overrides, tmp_path) -> None:
    """In each step the worst loss or term, the norm, and all weights together.

    AdamW divides by the size of gradients, so that rounding in one step is ten times as much in the next, in the plain
    process as well. The even steps therefore begin with its weights and moments, and are held to 1e-6; the odd ones go
    on from what the ranks have, and show that they carry their own moments and weights on. A mistake (a gradient lost
    or counted twice, a wrong clipping, decay of the wrong group, a stale moment) is above 1e-3.
    """
    cases = {
        f"zero{stage} micro{n} clip{clip}": [zero(stage), f"micro_batches={n}", f"gradient_clipping={clip}"]
        for stage, n, clip in product("0123", (1, 2), (0, 1))
    }
    for stage, n in (("0", 1), ("3", 2), ("2_offload", 2), ("3_offload", 1)):
        options = [zero(stage), f"micro_batches={n}", "activation_checkpointing=true"]
        cases[f"zero{stage} micro{n} recomputed"] = options
    worst: dict[str, float] = {}
    wrong = []
    worlds = (1, 2)
    with ThreadPoolExecutor() as pool:  # at once: one rank alone would leave a core idle
        found_by_world = list(pool.map(lambda world: parity(tmp_path, world, 6, cases, pretrain_overrides), worlds))
    for (world, results), name in product(zip(worlds, found_by_world, strict=True), cases):
        assert len(results[name]) == 6
        for (step, found), key in product(enumerate(results[name]), BOUNDS):
            # Without clipping gradients are larger, and AdamW's epsilon hides less of their rounding noise.
            # The plain process itself is 1.0e-6 from float64 in their loss after eight steps, and 1.1e-5 in the norm of
            # the second step, so two processes may be twice that apart.
            factor = {"weights": 10, "total": 2, "norm": 2}.get(key, 1) if name.endswith("clip0") else 1
            allowed = BOUNDS[key][step % 2] * factor
            worst[key] = max(worst.get(key, 0.0), found[key] / allowed)
            if not found[key] < allowed:
                wrong.append(f"{world} ranks, {name}, step {step}: {key} {found[key]:.1e}, allowed {allowed:.1e}")
    print("largest difference of six steps over what is allowed:", {k: f"{v:.2f}" for k, v in worst.items()})
    assert not wrong, "\n".join(wrong)
    check_exports(dict(zip(worlds, found_by_world, strict=True)))


def check_exports(found_by_world: dict[int, dict]) -> None:
    """Every stage, with and without offload, at both numbers of ranks: exported weights and outputs are the trained."""
    exports = {
        f"{world} ranks, {name}": steps[-1]["export"]
        for world, results in found_by_world.items()
        for name, steps in results.items()
        if "export" in steps[-1]
    }
    assert {case.split()[2] for case in exports} == {f"zero{s}" for s in ("0", "1", "2", "3", "2_offload", "3_offload")}
    assert len(exports) == 2 * 8
    wrong = {case: names for case, names in exports.items() if names}
    print(f"{len(exports)} exports; those with weights or outputs that differ from the training's: {wrong}")
    assert not wrong


def digests(run_dir: Path, step: int) -> dict[str, str]:
    return checkpoint.read_manifest(checkpoint.checkpoint_path(run_dir, step))["files"]


WHOLE = ["steps=50", "checkpoint_every=16", "keep_every=16"]


@pytest.fixture(scope="module")
def runs(corpus_dir, tmp_path_factory) -> tuple[Path, list[str]]:
    """Runs of two ranks in one spawn, many of which begin with a checkpoint of another; and their common overrides."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = [
        f"corpus_dir={corpus_dir}", "batch={paired: 4, eeg: 0, fmri: 0}", "window_seconds={eeg: 10, fmri: 30}",
        "warmup_steps=2",
    ]  # fmt: skip

    def saved(run: str, step: int) -> str:
        return str(checkpoint.checkpoint_path(folder / run, step))

    short = ["steps=4", "checkpoint_every=2"]
    plan = [("whole", [*WHOLE, zero("2")], None)]
    for stage, precision in product("0123", ("fp32", "bf16")):
        options = [*short, zero(stage), f"precision={precision}"]
        plan.append((f"all{stage}{precision}", options, None))
        plan.append((f"rest{stage}{precision}", options, saved(f"all{stage}{precision}", 2)))
    plan += [
        ("zero3to0", [*short, zero("0"), "precision=fp32"], saved("all3fp32", 2)),
        ("zero0to2", ["steps=6", "schedule_steps=4", zero("2"), "precision=fp32"], saved("zero3to0", 4)),
        ("zero2to3", ["steps=6", "schedule_steps=4", zero("3"), "precision=fp32"], saved("zero3to0", 4)),
    ]
    named = [(str(folder / run), options, begin) for run, options, begin in plan]
    run_ranks(2, RESUME, json.dumps(named), *overrides, seconds=900)
    return folder, overrides


def losses(run_dir: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in read_metrics(run_dir)}


@pytest.mark.slow
@pytest.mark.multirank
def test_resumed_by_the_same_ranks_bit_for_bit_and_at_another_stage_up_to_rounding(runs) -> None:
    """Weights and moments by their digests. Between stages the forward pass is the same, so is the first loss."""
    folder, _ = runs
    for stage, precision in product("0123", ("fp32", "bf16")):
        whole, rest = (digests(folder / f"{name}{stage}{precision}", 4) for name in ("all", "rest"))
        assert whole == rest, f"ZeRO-{stage}, {precision}"
    before, after = losses(folder / "all3fp32"), losses(folder / "zero3to0")
    assert list(after) == [3, 4] and list(after.values()) == pytest.approx([before[3], before[4]], rel=1e-6)
    two, three = losses(folder / "zero0to2"), losses(folder / "zero2to3")
    assert list(two) == [5, 6] and list(two.values()) == pytest.approx(list(three.values()), rel=1e-6)


@pytest.mark.slow
@pytest.mark.multirank
def test_two_ranks_then_one_then_four_follow_two_that_were_never_interrupted(runs) -> None:
    """50 steps: 16 of two ranks at ZeRO-2, 16 of one at ZeRO-1, 18 of four at ZeRO-3."""
    folder, overrides = runs
    elastic, begin = folder / "elastic", checkpoint.checkpoint_path(folder / "whole", 16)
    first = [str(elastic), ["steps=32", "schedule_steps=50", "checkpoint_every=16", zero("1")], str(begin)]
    run_ranks(1, RESUME, json.dumps([first]), *overrides, seconds=900)
    run_ranks(4, RESUME, json.dumps([[str(elastic), [*WHOLE, zero("3")], None]]), *overrides, seconds=900)
    reference, resumed = losses(folder / "whole"), losses(elastic)
    assert sorted(resumed) == list(range(17, 51))
    error = {step: abs(loss / reference[step] - 1) for step, loss in resumed.items()}
    assert max(error.values()) < 1e-6, f"{error}"


@pytest.mark.multirank
def test_ranks_that_touch_different_parameters_are_stopped(pretrain_overrides, tmp_path) -> None:
    run_ranks(2, VIOLATION, str(tmp_path / "told"), *pretrain_overrides)
    first, second = (json.loads((tmp_path / f"told.{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert first["made"] == [True, 0], "ZeRO-0 in bf16 took a step before the first"
    assert first["norm"][0] == pytest.approx(first["norm"][1], rel=1e-5), "in bf16 it was off by 3e-3"
    assert first["1/"] == ""
    lacks = "modalities of the batch: expected the same on all 2 ranks, rank 1 lacks fmri"
    assert first["1/fmri"] == first["3/fmri"] == lacks
    message = first["2/eeg_spectral"]
    assert message.startswith("parameters with a gradient: expected the same on all 2 ranks, rank 1 lacks model.enc")
    assert "eeg_spectral" in message and "more" in message and "\n" not in message


def config_with(tmp_path: Path, deepspeed: dict, *overrides: str) -> PretrainConfig:
    (tmp_path / "ds.json").write_text(json.dumps(deepspeed))
    return PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", f"deepspeed={tmp_path / 'ds.json'}", *overrides])


def test_values_of_our_config_reach_deepspeed_and_may_not_be_repeated(tmp_path) -> None:
    values = engine.deepspeed_config(config_with(tmp_path, {"zero_optimization": {"stage": 2}}), 2, 48)
    assert values["train_micro_batch_size_per_gpu"] == 24
    assert values["gradient_clipping"] == 1.0
    assert values["bf16"] == {"enabled": False}

    stage1 = config_with(tmp_path, {"zero_optimization": {"stage": 1}})
    alone, among_two = (engine.deepspeed_config(stage1, ranks, 48)["zero_optimization"] for ranks in (1, 2))
    assert alone == {"stage": 1, "contiguous_gradients": False} and among_two == {"stage": 1}
    own = config_with(tmp_path, {"zero_optimization": {"stage": 1, "contiguous_gradients": True}})
    assert engine.deepspeed_config(own, 1, 48)["zero_optimization"]["contiguous_gradients"]

    def refused(message: str, deepspeed: dict, *overrides: str) -> None:
        with pytest.raises(ValueError, match=message):
            engine.deepspeed_config(config_with(tmp_path, deepspeed, *overrides), 2, 48)

    refused(r"ds.json: \['gradient_clipping'\] come from the pretraining config", {"gradient_clipping": 0.5})
    refused("compile=true: expected ZeRO 0-2, found stage 3", {"zero_optimization": {"stage": 3}}, "compile=true")
    for name in ("managed_gradient_accumulation", "zero_force_ds_cpu_optimizer"):
        refused(rf"ds.json: \['{name}'\] come from the pretraining config", {name: False})
    refused("ds.json: zero_optimization: expected a JSON object, found True", {"zero_optimization": True})
    refused("ds.json: offload_param: .* found 'cpu'", {"zero_optimization": {"stage": 3, "offload_param": "cpu"}})
    for dtype in ({}, {"dtype": "fp16"}):
        autocast = {"torch_autocast": {"enabled": True, **dtype}}
        refused("ds.json: torch_autocast.dtype: expected bf16, found ", autocast)
    autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    assert engine.deepspeed_config(config_with(tmp_path, autocast), 2, 48)["torch_autocast"]["enabled"]
    nvme = {"stage": 3, "offload_optimizer": {"device": "nvme"}}
    refused("offload_optimizer.device: expected none or cpu, found nvme", {"zero_optimization": nvme})
    (tmp_path / "ds.json").write_text("{")
    broken = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", f"deepspeed={tmp_path / 'ds.json'}"])
    with pytest.raises(ValueError, match=r"ds.json: not valid JSON"):
        engine.deepspeed_config(broken, 1, 4)
    (tmp_path / "ds.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ds.json: expected a JSON object, found list"):
        engine.deepspeed_config(broken, 1, 4)


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four GPUs that only note what is asked of them, and in which order; this process is rank 6, the third there."""
    done: list[str] = []

    class Event:
        def __init__(self, **_: object) -> None:
            done.append("an event")

        def record(self) -> None:
            pass

    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    for name, value in {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(f"current device {device}"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: "the process group" in done)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 6)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    monkeypatch.setattr(engine.deepspeed, "init_distributed", lambda **_: done.append("the process group"))
    return done


def test_a_rank_takes_its_gpu_before_anything_is_put_on_a_gpu_or_sent(fake_gpus, monkeypatch, tmp_path) -> None:
    """NCCL refuses two ranks on one GPU, and every process begins with the first one as its current device."""

    class Sent(Exception):  # noqa: N818
        pass

    def all_gather_object(*_: object) -> None:
        fake_gpus.append("a collective")
        raise Sent

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    with pytest.raises(Sent):
        pretrain(PretrainConfig.load(None, ["corpus_dir=c", f"run_dir={tmp_path / 'run'}"]))
    assert fake_gpus[0] == "current device cuda:2" and fake_gpus[-1] == "a collective"
    assert {"an event", "the process group"} <= set(fake_gpus[1:-1])
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"rank 6 needs GPU 4 \(LOCAL_RANK\), found 4 GPUs"):
        engine.use_device()


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_chosen_where_the_gpu_computes_in_it_and_not_where_it_is_emulated(
    fake_gpus, monkeypatch, native
) -> None:
    """As V100 and T4 do, slower than they compute in fp32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    config = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r"])
    assert engine.deepspeed_config(config, 2, 48)["bf16"] == {"enabled": native}


def test_temperatures_are_one_tensor_bounded_in_single_precision_and_can_come_back() -> None:
    config = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r"])
    module = Pretrainer(config.model, config.objective, config.augmentation).to(torch.bfloat16)
    assert module.log_scale_P.ndim == 1 and len(module.log_scale_P) == len(module.terms) > 1
    assert module.scale_P().dtype == torch.float32
    with torch.no_grad():
        module.log_scale_P[0], module.log_scale_P[1] = 9.0, -3.0
    scale_P = module.scale_P()
    assert scale_P[:2].tolist() == pytest.approx([MAX_SCALE, 1.0], rel=1e-6)
    scale_P.sum().backward()
    assert module.log_scale_P.grad is not None and bool((module.log_scale_P.grad > 0).all())
    assert all(p.ndim > 0 for p in module.parameters()), "DeepSpeed fails on 0-dim parameters on two ranks"
    decayed, plain = engine.parameter_groups(module, 0.05)
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert any(p is module.log_scale_P for p in plain["params"])
    assert not any(p is module.log_scale_P for p in decayed["params"])


def test_the_golden_trace_is_as_it_was() -> None:
    expected, found = json.loads(golden.GOLDEN.read_text()), golden.trace()
    assert len(found) == len(expected) == golden.STEPS
    for step, (now, then) in enumerate(zip(found, expected, strict=True)):
        assert now == pytest.approx(then, rel=2e-2 if step else 1e-4, abs=1e-4), f"step {step}: see golden.py"


def test_deepspeed_has_what_is_used_of_its_inside() -> None:
    """A new version that renames something should say so here, not in the middle of a run."""
    import deepspeed.ops
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils.tensor_fragment import tensor_fragment

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert {"scaled_global_norm", "check_overflow", "update_lp_params"} <= set(dir(DeepSpeedZeroOptimizer))
    used = {"_get_norm_groups", "get_param_id", "checkpoint_event_epilogue"}
    assert {*used, "_reassign_or_swap_out_partitioned_parameters"} <= set(dir(DeepSpeedZeroOptimizer_Stage3))
    assert {"hp_fragment_address", "lp_fragment_address"} <= set(tensor_fragment.__dataclass_fields__)


def test_every_collective_of_deepspeed_is_watched() -> None:
    from deepspeed.comm.torch import TorchBackend

    others = {
        "init_process_group", "destroy_process_group", "is_initialized", "init_device_mesh", "get_backend", "new_group",
        "get_rank", "get_world_size", "get_global_rank", "get_world_group", "get_all_gather_function",
        "get_reduce_scatter_function", "has_all_gather_into_tensor", "has_reduce_scatter_tensor",
        "enable_symm_mem_for_group", "send", "recv", "isend", "irecv", "batch_isend_irecv",
    }  # fmt: skip
    assert {name for name in vars(TorchBackend) if not name.startswith("_")} - others == set(COLLECTIVES)
    # Whether it is to return at once comes by position: what it returns is waited for under the watch.
    waited = []

    class Work:
        def wait(self) -> str:
            waited.append(clock.doing)
            return "done"

    class Backend:
        def all_reduce(self, tensor: object, op: object, group: object, async_op: bool) -> Work | None:
            return Work() if async_op else None

    for name in set(COLLECTIVES) - {"all_reduce"}:
        setattr(Backend, name, lambda self: None)
    backend, clock = Backend(), Clock(torch.device("cpu"))
    clock.watch_collectives(backend)
    clock.enter("backward")
    assert backend.all_reduce(None, None, None, False) is None
    work = backend.all_reduce(None, None, None, True)
    assert work is not None and work.wait() == "done" and waited == ["communication of backward"]
