"""One rank of the parity tests: steps of DeepSpeed beside those of one plain process, by ZeRO stage and option."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import from_pretrained
from mcsp.export.export import fixed_signals, write_export
from mcsp.losses.objective import objective
from mcsp.training import engine
from mcsp.training.pretrainer import Pretrainer
from mcsp.training.reading.loader import StepDataset
from mcsp.training.saving import checkpoint
from mcsp.training.saving import state as fragments
from mcsp.training.saving.state import consolidate_weights
from mcsp.training.trainer import Trainer, schedule_of

RATE = 1e-3
Found = dict[str, Any]  # total, gradients, norm, weights, moments, export


def totals(loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss and terms; not the accuracies, which jump."""
    return torch.stack([loss.detach(), *(value for name, value in terms.items() if not name.startswith("top1/"))])


def plain_steps(config: PretrainConfig, steps: int, dtype: torch.dtype = torch.float32) -> Iterator[Found]:
    """The same steps without DeepSpeed, ranks and micro-batches: torch's AdamW and torch's clipping."""
    assert distributed.world_size() == 1
    corpus = Corpus(config.corpus_dir)
    dataset = StepDataset(corpus, schedule_of(config, corpus), 0, 1)
    torch.manual_seed(config.seed)
    module = Pretrainer(config.model, config.objective, config.augmentation).to(dtype)
    groups = [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    for step in range(steps):
        batch = dataset[step][0]
        signals = {
            m: s.replace(x_BCT=s.x_BCT.to(dtype), position_BC3=s.position_BC3.to(dtype))
            for m, s in batch.signals.items()
        }
        batch = replace(batch, signals=signals)
        loss, terms = objective(
            *module(batch), batch.subject_N, batch.site_N, config.objective, module.terms, module.predictions
        )
        optimizer.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if config.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clipping)
        optimizer.step()
        weights = {n: p.detach().clone() for n, p in module.named_parameters()}
        total = totals(loss, terms)
        moments = {
            kind: {n: optimizer.state[p][kind].clone() for n, p in module.named_parameters()}
            for kind in fragments.MOMENTS
        }
        yield {"total": total, "gradients": gradients, "norm": float(norm), "weights": weights, "moments": moments}


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The fp32 weights that the optimizer steps on, put together from all ranks."""
    own = [(f.name, f.start, f.shape, f.values["weight"].clone()) for f in fragments.owned(trainer.engine._engine)]
    found: dict[str, torch.Tensor] = {}
    for part in distributed.gather_objects(own):
        for name, start, shape, value in part:
            found.setdefault(name, torch.empty(shape)).view(-1)[start : start + len(value)] = value
    return found


def whole_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The fp32 gradients before a step; every rank calls it."""
    found = {name: safe_get_full_grad(parameter) for name, parameter in trainer.module.named_parameters()}
    return {name: gradient.detach().clone() for name, gradient in found.items() if gradient is not None}


def take_over(trainer: Trainer, plain: Found, steps: int) -> None:
    """Give the ranks the weights and moments of the plain process after ``steps`` steps."""
    whole = {"weight": plain["weights"], **plain["moments"]}
    for fragment in fragments.owned(trainer.engine._engine):
        for kind, value in fragment.values.items():
            flat = whole[kind][fragment.name].flatten()
            value.copy_(flat[fragment.start : fragment.start + len(value)])
    fragments.refresh(trainer.engine._engine, steps)


def what_an_export_gets_wrong(trainer: Trainer) -> list[str]:
    """Names of weights and outputs that are not, bit for bit, those of the training; every rank calls it."""
    prefix = "model."
    expected = {n.removeprefix(prefix): w for n, w in whole_weights(trainer).items() if n.startswith(prefix)}
    signals = fixed_signals(trainer.config.model.modalities)
    with torch.no_grad():  # in evaluation mode there is nothing else: the model has no dropout
        h = trainer.module.model.encode(signals)
    trainer.save()
    trainer.saver.finish()
    if not distributed.is_main():
        return []
    config = trainer.config
    path = checkpoint.checkpoint_path(config.run_dir, trainer.step)
    out, corpus = config.run_dir / "model", Corpus(config.corpus_dir)
    write_export(consolidate_weights(path), checkpoint.read_manifest(path), [], corpus, out)
    exported = from_pretrained(out)
    found = exported.state_dict()
    assert found.keys() == expected.keys()
    wrong = [name for name, weight in found.items() if not torch.equal(weight, expected[name])]
    with torch.no_grad():
        for modality, domains in exported.encode(signals).items():
            wrong += [f"{modality} {d}" for d, h_BD in domains.items() if not torch.equal(h_BD, h[modality][d])]
    return wrong


def deepspeed_steps(config: PretrainConfig, plain: list[Found]) -> Iterator[Found]:
    """As many steps as the plain process took; every other one from the state that it was in."""
    trainer, steps, micro = Trainer(config), len(plain), config.micro_batches
    for step in range(steps):
        if step and step % 2 == 0:
            take_over(trainer, plain[step - 1], step)
        batches = trainer.dataset[step]
        embedded = trainer.embed(batches)
        share, terms = trainer.loss(embedded)
        total = distributed.over_ranks(totals(share, terms), "sum")
        trainer.backward(share, embedded, batches)
        gradients = whole_gradients(trainer) if steps == 1 else {}  # slow: gathered one by one
        norm, _ = trainer.engine.step(RATE)
        found = {"total": total, "gradients": gradients, "norm": norm, "weights": whole_weights(trainer)}
        # Neither clipping nor micro-batches change what is saved.
        if step == steps - 1 > 0 and (config.activation_checkpointing or config.gradient_clipping == micro == 1):
            found["export"] = what_an_export_gets_wrong(trainer)
        yield found


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """L2 norm of the difference of all tensors, relative to that of ``b``."""
    assert a.keys() == b.keys()
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def compare(found: Found, expected: Found) -> dict[str, Any]:
    """How far a step is from the plain one; of losses the largest difference, of the rest L2 norms, all relative."""
    total, norm = expected["total"].double(), expected["norm"]
    differences: dict[str, Any] = {
        "total": float(((found["total"] - total).abs() / total.abs().clamp_min(1)).max()),
        "norm": abs(found["norm"] / norm - 1),
        "weights": distance(found["weights"], expected["weights"]),
    }
    if found["gradients"]:
        # A single wrong parameter, a temperature say, must not hide behind the others.
        whole = flat(expected["gradients"]).norm()
        gradients = {n: g.reshape(expected["gradients"][n].shape) for n, g in found["gradients"].items()}
        differences["gradient"] = distance(gradients, expected["gradients"])
        differences["worst_parameter"] = max(
            float((gradients[n] - g).norm() / (g.norm() + 1e-3 * whole)) for n, g in expected["gradients"].items()
        )
    if "export" in found:
        differences["export"] = found["export"]
    return differences


def main(out: str, cases: str, steps: str, *overrides: str) -> None:
    """``cases``: JSON list of [name, [override ...]].

    Writes {name: [comparison of each step]}, and of a single step beside each case "float64 ...": how far the plain
    process itself is from float64.
    """
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    plain: dict[float, list[Found]] = {}
    rounding: dict[float, list[dict[str, Any]]] = {}
    runs = {n: PretrainConfig.load(None, [*overrides, *own, f"run_dir={out}-{n}"]) for n, own in json.loads(cases)}
    for config in runs.values():  # before there are ranks: with them the objective would gather over all
        clipping = config.gradient_clipping
        if clipping not in plain:
            plain[clipping] = list(plain_steps(config, int(steps)))
            if steps == "1":
                exact = next(plain_steps(config, 1, torch.float64))
                rounding[clipping] = [compare(plain[clipping][0], exact)]
    for name, config in runs.items():
        expected = plain[config.gradient_clipping]
        pairs = zip(deepspeed_steps(config, expected), expected, strict=True)
        results[name] = [compare(found, wanted) for found, wanted in pairs]
        if rounding:
            results[f"float64 {name}"] = rounding[config.gradient_clipping]
    if distributed.is_main():
        Path(out).write_text(json.dumps(results))
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
