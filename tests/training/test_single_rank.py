"""Runs of one rank through the launcher.

Covers: launchers/pretrain.py, mcsp/commands/pretrain.py
"""

import shutil
import subprocess
import sys

import pytest

from mcsp.run_log import read_events, read_metrics
from tests.training.ranks import ROOT, environment, pretrain, same, weights


def one_line(output: str, message: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert "Traceback" not in output


def test_neither_loader_processes_nor_bf16_change_more_than_they_may(pretrain_overrides, tmp_path) -> None:
    """Loader processes change nothing; the first steps in bf16 follow those in fp32."""
    for name, change in (("plain", "workers=0"), ("loaded", "workers=2")):
        pretrain(*pretrain_overrides, f"run_dir={tmp_path / name}", "precision=fp32", change)
    assert same(weights(tmp_path / "plain", 6), weights(tmp_path / "loaded", 6))
    pretrain(*pretrain_overrides, f"run_dir={tmp_path / 'bf16'}", "precision=bf16", "steps=3", "schedule_steps=6")
    fp32, bf16 = (read_metrics(tmp_path / name) for name in ("plain", "bf16"))
    assert len(bf16) == 3 and bf16[0]["loss"] != fp32[0]["loss"]
    assert all(abs(a["loss"] / b["loss"] - 1) < 0.03 for a, b in zip(bf16, fp32[:3], strict=True))


@pytest.mark.slow
def test_compiled_blocks_follow_those_that_are_not(pretrain_overrides, tmp_path) -> None:
    """All domains: losses and the size of the gradient, and losses again after an update.

    Adam's first update has the size of the rate whatever the gradient's, so where a gradient is rounding its sign is
    too: the second step is held to less.
    """
    options = [*pretrain_overrides, "steps=2", "checkpoint_every=2"]
    for compiled in ("false", "true"):
        pretrain(*options, f"run_dir={tmp_path / compiled}", f"compile={compiled}", seconds=400)
    plain, compiled_ = (read_metrics(tmp_path / name) for name in ("false", "true"))
    losses = [name for name in plain[0] if name.split("/")[0] == "loss"]
    assert len(plain) == len(compiled_) == 2 and len(losses) > 20
    for a, b, names, bound in (
        (plain[0], compiled_[0], [*losses, "gradient_norm"], 1e-5),
        (plain[1], compiled_[1], losses, 1e-3),
    ):
        assert {n: b[n] for n in names} == pytest.approx({n: a[n] for n in names}, rel=bound, abs=bound / 10)
    assert weights(tmp_path / "true", 2).keys() == weights(tmp_path / "false", 2).keys()


def test_a_loss_that_is_not_finite_is_skipped_and_counted(pretrain_overrides, tmp_path) -> None:
    pretrain(*pretrain_overrides, "learning_rate=1e30", "gradient_clipping=0")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[0]["skipped_steps"] == 0
    assert lines[-1]["skipped_steps"] >= 3


COUNTS = """
import importlib, os, sys, torch
def told(name):
    method = getattr(torch.Tensor, name)
    def call(self, *arguments):
        caller = sys._getframe(1).f_code
        if os.path.basename(caller.co_filename) in ("trainer.py", "engine.py"):
            print("wait in", caller.co_name, file=sys.stderr)
        return method(self, *arguments)
    setattr(torch.Tensor, name, call)
for name in ("tolist", "item", "__float__", "__bool__", "__int__"):
    told(name)
objective = importlib.import_module("mcsp.losses.objective")
found = objective.retrieval_accuracy
objective.retrieval_accuracy = lambda *a, **k: (print("retrieval", file=sys.stderr), found(*a, **k))[1]
from launchers.pretrain import main
main()
"""


def test_retrieval_is_found_in_logged_steps_alone_and_a_step_waits_once_for_the_device(
    pretrain_overrides, tmp_path
) -> None:
    """It takes as long as the contrast itself."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, *pretrain_overrides, "steps=4", "log_every=3", "validate_every=0"],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 3, 4] and done.stderr.count("retrieval\n") == 3
    assert all("top1/fmri-eeg/spatial" in line for line in lines)
    # The loop asks the device once a step, whether the step is to be taken: for the norm, all losses and what ranks
    # tell each other. Norms by group are of logged steps with an evaluation.
    waits = [line[8:] for line in done.stderr.splitlines() if line.startswith("wait in ")]
    assert [wait for wait in waits if wait != "group_norms"] == ["_refuses"] * 4


PLAIN = """
import sys, torch
from mcsp.config import PretrainConfig
from mcsp.losses.objective import objective
from mcsp.training import engine
from mcsp.training.pretrainer import Pretrainer
from mcsp.training.trainer import Trainer
torch.set_num_threads(1)
config = PretrainConfig.load(None, sys.argv[1:])
trainer = Trainer(config)
torch.manual_seed(config.seed)
plain = Pretrainer(trainer.config.model, config.objective, config.augmentation)
groups = engine.parameter_groups(plain, config.weight_decay)
optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
for step in range(4):
    if step == 2:  # from now on nothing depends on one encoder
        for module in (plain, trainer.module):
            project = module.model.project
            module.model.project = lambda m, d, h_BD, project=project: project(m, d, h_BD.detach())
            module.predictions = []
            module.model.encode_measured = lambda *a, encode=module.model.encode_measured: encode(*a).detach()
    batch = trainer.dataset[step]
    [batch[0].signals.pop("fmri") for _ in range(step == 3)]
    values = trainer.train_step(batch)
    optimizer.zero_grad()
    output = plain(batch[0])
    loss, _ = objective(*output, batch[0].subject_N, batch[0].site_N, config.objective, plain.terms, plain.predictions)
    loss.backward()
    missing = [p for p in plain.parameters() if p.grad is None]
    for parameter in missing:
        parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), config.gradient_clipping)
    optimizer.step()
    assert bool(missing) == (step >= 2), (step, len(missing))
    assert float(norm) > config.gradient_clipping, norm
    assert (values["loss"], values["gradient_norm"]) == (float(loss), float(norm)), step
    for (name, a), b in zip(plain.named_parameters(), trainer.module.parameters(), strict=True):
        assert torch.equal(a, b), (step, name)
"""


def test_one_rank_at_stage_0_computes_the_bits_of_plain_torch(pretrain_overrides) -> None:
    """Where it clips by a norm that it has already, and leaves out what other ranks' gradients would need."""
    own = ["deepspeed=configs/deepspeed/zero0.json", "warmup_steps=0", "schedule=constant", "gradient_clipping=0.1"]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *pretrain_overrides, *own],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_a_run_is_lengthened_or_refused(pretrain_overrides, tmp_path) -> None:
    run_dir = tmp_path / "run"
    pretrain(*pretrain_overrides)
    final = weights(run_dir, 6)
    state = next((run_dir / "checkpoints" / "step-00000006" / "state").iterdir())
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    output = pretrain(*pretrain_overrides)
    assert "damaged checkpoint passed over" in output and str(state) in output
    assert same(weights(run_dir, 6), final)

    one_line(pretrain(*pretrain_overrides, "steps=8", expect=2), "add schedule_steps=6")
    pretrain(*pretrain_overrides, "steps=8", "schedule_steps=6", "deepspeed=configs/deepspeed/zero3.json")
    rates = [line["learning_rate"] for line in read_metrics(run_dir)]
    assert len(rates) == 8 and rates[6] == rates[7] == pytest.approx(1e-4)
    one_line(pretrain(*pretrain_overrides, f"run_dir={tmp_path / 'x'}", "resume=must", expect=2), "no valid checkpoint")
    # All that there is elsewhere: a machine without the folder goes on from a copy.
    longer = [*pretrain_overrides, "steps=9", "schedule_steps=6", f"mirror_dir={tmp_path / 'mirror'}"]
    pretrain(*longer, "learning_rate=0.0005")
    [changed] = [event for event in read_events(run_dir) if event["event"] == "changed"]
    assert changed["step"] == 8 and changed["learning_rate"] == "0.001 -> 0.0005"
    starts = [event["arithmetic"] for event in read_events(run_dir) if event["event"] == "start"]
    assert set(starts) == {"fp32 on cpu, products of the contrast fp32"}
    final = weights(run_dir, 9)
    shutil.rmtree(run_dir)
    assert "finished before, after 9 steps" in pretrain(*longer, "learning_rate=0.0005", "resume=must")
    assert same(weights(run_dir, 9), final) and len(read_metrics(run_dir)) == 9
    for path in (run_dir / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    refused = pretrain(*longer, "learning_rate=0.0005", expect=2)
    assert "none of 1 checkpoints (step-00000009 to step-00000009) can be read" in refused
    assert len(read_metrics(run_dir)) == 9


def test_bad_input_gets_one_line(pretrain_overrides, tmp_path) -> None:
    def refuse(*overrides: str, message: str) -> None:
        one_line(pretrain(*pretrain_overrides, *overrides, expect=2), message)

    refuse("stepz=5", message="unknown key 'stepz'; did you mean 'steps'? known keys: activation_checkpointing, ")
    refuse("corpus_dir=/nowhere", message="/nowhere")
    refuse("batch={paired: 4, eeg: 2, fmri: 0}", message="batch.eeg=2, but the training split has no such sample")
    refuse("window_seconds={eeg: 10, fmri: 3000}", message="shorten window_seconds")
    refuse("deepspeed=none.json", message="none.json: cannot read the DeepSpeed config")
    one_line(pretrain("--config", "no.yaml", expect=2), "no.yaml: cannot read the config file")
