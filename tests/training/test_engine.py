import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcsp.config import PretrainConfig
from mcsp.data_sharding.reader import Corpus
from mcsp.losses.objective import objective
from mcsp.training import engine
from mcsp.training.loader import StepDataset
from mcsp.training.pretrainer import Pretrainer
from mcsp.training.trainer import schedule_of
from tests.training.ranks import run_ranks

PROGRAM = Path(__file__).with_name("parity_program.py")


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def plain_torch(config: PretrainConfig, dtype: torch.dtype = torch.float32) -> dict:
    """The same batch without DeepSpeed, ranks and micro-batches."""
    corpus = Corpus(config.corpus_dir)
    batch = StepDataset(corpus, schedule_of(config, corpus), 0, 1)[0][0]
    signals = {
        m: s.replace(x_BCT=s.x_BCT.to(dtype), position_BC3=s.position_BC3.to(dtype)) for m, s in batch.signals.items()
    }
    batch = replace(batch, signals=signals)
    torch.manual_seed(config.seed)
    module = Pretrainer(config.model, config.objective, config.augmentation).to(dtype)
    loss, terms = objective(*module(batch), batch.subject_N, batch.site_N, config.objective, module.terms)
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"total": torch.stack([loss.detach(), *terms.values()]), "gradients": gradients}


@pytest.mark.multirank
def test_ranks_zero_stages_and_micro_batches_equal_plain_torch(pretrain_overrides, tmp_path) -> None:
    config = PretrainConfig.load(None, pretrain_overrides)
    reference, exact = plain_torch(config), flat(plain_torch(config, torch.float64)["gradients"])
    rounding = float((flat(reference["gradients"]) - exact).norm() / exact.norm())
    assert rounding < 3e-6, "single precision itself is further from float64 than it was"
    found = {}
    for world in (1, 2):
        out = tmp_path / f"world{world}.pt"
        run_ranks(world, PROGRAM, str(out), *pretrain_overrides)
        found[world] = torch.load(out, weights_only=True)
    for world, stages in found.items():
        for (stage, micro_batches), values in stages.items():
            where = f"{world} ranks, ZeRO-{stage}, {micro_batches} micro-batches"
            torch.testing.assert_close(values["total"], reference["total"], rtol=1e-6, atol=1e-6, msg=where)
            assert values["gradients"].keys() == reference["gradients"].keys(), where
            whole, reference_whole = flat(values["gradients"]), flat(reference["gradients"])
            error = float((whole - reference_whole).norm() / reference_whole.norm())
            # Four micro-batches of one row round differently, but no worse than one batch of four does.
            assert error < 1e-6 or micro_batches > 1, f"{where}: the gradient differs by {error:.1e}"
            assert float((whole - exact).norm() / exact.norm()) < 1.5 * rounding, f"{where}: far from float64"
            # A single wrong parameter, a temperature say, must not hide behind the others.
            for name, gradient in reference["gradients"].items():
                difference = values["gradients"][name].reshape(gradient.shape) - gradient
                assert difference.norm() < 1e-4 * gradient.norm() + 1e-7 * reference_whole.norm(), f"{where}: {name}"
            assert abs(values["norm"] / float(reference_whole.norm()) - 1) < 1e-5, where
            for name, weight in values["weights"].items():
                # Stages add up micro-batches and norms in their own order, and Adam divides tiny gradients by
                # their own size: within a hundredth of the step of 1e-3.
                torch.testing.assert_close(
                    weight, stages[1, micro_batches]["weights"][name], rtol=0, atol=1e-5, msg=where
                )
        assert set(stages[1, 1]["weights"]) == {n.removeprefix("model.") for n in reference["gradients"]} - {
            "log_scale_P"
        }


def config_with(tmp_path: Path, deepspeed: dict, *overrides: str) -> PretrainConfig:
    (tmp_path / "ds.json").write_text(json.dumps(deepspeed))
    return PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", f"deepspeed={tmp_path / 'ds.json'}", *overrides])


def test_values_of_our_config_reach_deepspeed_and_may_not_be_repeated(tmp_path) -> None:
    values = engine.deepspeed_config(config_with(tmp_path, {"zero_optimization": {"stage": 2}}), 2, 48)
    assert values["train_micro_batch_size_per_gpu"] == 24
    assert values["gradient_clipping"] == 1.0
    assert values["bf16"] == {"enabled": False}
    with pytest.raises(ValueError, match=r"ds.json: \['gradient_clipping'\] come from the pretraining config"):
        engine.deepspeed_config(config_with(tmp_path, {"gradient_clipping": 0.5}), 2, 48)
    (tmp_path / "ds.json").write_text("{")
    broken = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", f"deepspeed={tmp_path / 'ds.json'}"])
    with pytest.raises(ValueError, match=r"ds.json: not valid JSON"):
        engine.deepspeed_config(broken, 1, 4)
