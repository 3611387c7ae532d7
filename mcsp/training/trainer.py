"""The pretraining loop: batch, views, embeddings, objective, step; log, save, resume."""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsp import distributed
from mcsp.batch import Batch
from mcsp.config import PretrainConfig
from mcsp.data_sharding.reader import Corpus
from mcsp.losses.objective import objective
from mcsp.training import checkpoint, engine
from mcsp.training.initial import start_from
from mcsp.training.loader import BadWindows, StepDataset, batches
from mcsp.training.metrics import Metrics
from mcsp.training.pretrainer import Pretrainer
from mcsp.training.schedule import Schedule
from mcsp.training.stopping import StopRequest, write_exit


def learning_rate(config: PretrainConfig, applied_steps: int) -> float:
    """Linear warm-up, then a half cosine from the peak to a tenth of it; a function of applied steps."""
    if applied_steps < config.warmup_steps:
        return config.learning_rate * (applied_steps + 1) / config.warmup_steps
    length = config.schedule_steps or config.steps
    progress = (applied_steps - config.warmup_steps) / max(1, length - config.warmup_steps)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


def for_corpus(config: PretrainConfig, corpus: Corpus) -> PretrainConfig:
    """The config with the model's modalities reduced to those that the batch quotas ask for.

    Raises:
        ValueError: no quota asks for any modality of the model.
    """
    asked = {"eeg": config.batch.paired + config.batch.eeg, "fmri": config.batch.paired + config.batch.fmri}
    modalities = tuple(m for m in config.model.modalities if asked[m])
    if not modalities:
        raise ValueError(
            f"batch {config.batch.dump()} asks for none of the model's modalities {config.model.modalities}"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"modalities": modalities})})


class Embedded(NamedTuple):
    """What the objective compares, of this rank."""

    z_MnK: Tensor
    valid_Mn: Tensor
    scale_P: Tensor
    subject_n: Tensor
    site_n: Tensor


def schedule_of(config: PretrainConfig, corpus: Corpus) -> Schedule:
    """What the steps of a run read from the training split."""
    return Schedule(
        corpus.recordings,
        index_hash=corpus.index_hash,
        seed=config.seed,
        quota=config.batch,
        window_seconds=config.window_seconds,
        delay_seconds=config.hemodynamic_delay_seconds,
        site_temperature=config.site_temperature,
        shuffle_shards=config.shuffle_shards,
    )


class Trainer:
    """One run. Every rank makes one and calls the same methods."""

    def __init__(self, config: PretrainConfig) -> None:
        """Open the corpus, build the model, and resume if there is something to resume.

        Raises:
            ValueError: a corpus, batch, checkpoint, init_from or number of ranks that does not fit, in one line.
        """
        corpus = Corpus(config.corpus_dir, config.cache_dir, config.cache_gb)
        self.config = for_corpus(config, corpus)
        engine.start_process_group()
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        schedule = schedule_of(config, corpus)
        schedule.check_shares(self.world_size, config.micro_batches)
        self.global_batch = schedule.global_batch
        self.dataset = StepDataset(corpus, schedule, self.rank, self.world_size, config.micro_batches)
        found = self._newest_checkpoint()
        torch.manual_seed(config.seed)
        self.module = Pretrainer(
            self.config.model,
            config.objective,
            config.augmentation,
            activation_checkpointing=config.activation_checkpointing,
            compile_encoders=config.compile,
        )
        if found is None and config.init_from:
            self._say(f"starts from the {start_from(config.init_from, self.module, self.config.model)}")
        self.engine = engine.Engine(self.module, config, self.world_size, schedule.global_batch)
        self.step = self.skipped_steps = 0
        self.stop = StopRequest()
        self.bad_windows = BadWindows(config.max_bad_windows)
        self.stopping = False  # some rank was asked to stop; the same on all ranks
        self.facts = {
            "index_hash": corpus.index_hash,
            "world_size": self.world_size,
            "zero_stage": self.engine.zero_stage,
            "config": self.config.dump(),
            "model_config": self.config.model.dump(),
        }
        if found is not None:
            self._resume(found)

    def _newest_checkpoint(self) -> Path | None:
        """The checkpoint to continue from. One rank looks and tells the others: they must not choose differently."""
        run_dir, found, problem = self.config.run_dir, None, ""
        if self.rank == 0:
            try:
                checkpoint.clear_incomplete(run_dir)
                found = checkpoint.latest_checkpoint(run_dir)
            except OSError as error:
                problem = f"{run_dir}: cannot look for checkpoints ({error.strerror})"
        found, problem = distributed.gather_objects((found, problem))[0]
        if problem:
            raise ValueError(problem)
        if found is not None and self.config.resume == "never":
            raise ValueError(f"{run_dir}: resume=never, but it holds checkpoint {found.name}; use another run_dir")
        if found is None and self.config.resume == "must":
            raise ValueError(f"{run_dir}: resume=must, but it holds no valid checkpoint")
        return found

    def _resume(self, path: Path) -> None:
        manifest = json.loads((path / checkpoint.MANIFEST).read_text())
        checkpoint.check_continues(path, manifest, self.facts)
        self.engine.load(path)
        self.step, self.skipped_steps = manifest["step"], manifest["skipped_steps"]
        then, now = ((f["world_size"], f["zero_stage"]) for f in (manifest, self.facts))
        if then != now:
            self._say(
                f"continues {path.name}, saved by {then[0]} ranks at ZeRO-{then[1]}, with {now[0]} at ZeRO-{now[1]}: "
                "the same data, numbers equal up to rounding"
            )

    def _say(self, sentence: str) -> None:
        if self.rank == 0:
            print(f"pretrain: {sentence}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Train until ``config.steps`` and save; returns at once where the run is already finished."""
        if self.rank == 0:
            self.config.run_dir.mkdir(parents=True, exist_ok=True)
            (self.config.run_dir / "config.json").write_text(json.dumps(self.config.dump(), indent=1))
        metrics = Metrics(self.config.run_dir, self.step, self.config.steps) if self.rank == 0 else None
        device = engine.device()
        stream = batches(self.dataset, self.step, self.config.steps, self.config.workers, device.type == "cuda")
        try:
            self._loop(stream, device, metrics)
        finally:
            if metrics:
                metrics.close()
        if self.rank == 0:
            reason = "asked to stop" if self.step < self.config.steps else "finished"
            write_exit(self.config.run_dir, reason, self.step)

    def _loop(self, stream: Any, device: torch.device, metrics: Metrics | None) -> None:
        begin = time.perf_counter()
        for micro_batches in stream:
            waited = time.perf_counter() - begin
            values = self.train_step([batch.to(device) for batch in micro_batches])
            self.step += 1
            seconds = time.perf_counter() - begin
            if metrics and (self.step % self.config.log_every == 0 or self.step == self.config.steps):
                speed = {
                    "samples_per_second": self.global_batch / seconds,
                    "seconds_per_step": seconds,
                    "data_wait_fraction": waited / seconds,
                    "skipped_steps": float(self.skipped_steps),
                    "bad_windows": float(self.bad_windows.bad),
                }
                metrics.write(self.step, {**values, **speed})
            if metrics:
                metrics.advance()
            too_bad = self.bad_windows.too_many()
            last = too_bad or self.stopping or self.step == self.config.steps
            if last or self.step % self.config.checkpoint_every == 0:
                self.save()
            if too_bad:
                raise ValueError(too_bad)
            if self.stopping:
                return
            begin = time.perf_counter()

    def embed(self, batches: Sequence[Batch]) -> Embedded:
        """Embeddings of this rank's micro-batches; of more than one without a graph, to be made again in backward."""
        if len(batches) == 1:
            z_MnK, valid_Mn, scale_P = self.engine(batches[0])
        else:
            with torch.no_grad():
                z_parts, valid_parts, scale_parts = zip(*(self.engine(batch) for batch in batches), strict=True)
            z_MnK, valid_Mn = torch.cat(z_parts, 1).requires_grad_(), torch.cat(valid_parts, 1)
            scale_P = scale_parts[0].clone().requires_grad_()
        subject_n, site_n = torch.cat([b.subject_N for b in batches]), torch.cat([b.site_N for b in batches])
        return Embedded(z_MnK, valid_Mn, scale_P, subject_n, site_n)

    def loss(self, embedded: Embedded) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's share of the loss and of every term, over the batch of all ranks and micro-batches."""
        return objective(*embedded, self.config.objective, self.module.terms)

    def backward(self, share: Tensor, embedded: Embedded, batches: Sequence[Batch]) -> None:
        """Gradients of the parameters, one micro-batch after the other (GradCache, arXiv 2101.06983).

        The views of a micro-batch are a function of its keys, so the second pass embeds what the first one did.
        """
        if len(batches) == 1:
            self.engine.backward(share)
            return
        grad_MnK, grad_P = torch.autograd.grad(share, (embedded.z_MnK, embedded.scale_P))
        for i, (batch, part_MnK) in enumerate(zip(batches, grad_MnK.chunk(len(batches), dim=1), strict=True)):
            z_MnK, _, scale_P = self.engine(batch)
            stand_in = (z_MnK * part_MnK).sum() + (scale_P * grad_P).sum() * float(i == 0)
            self.engine.backward(stand_in, last=i == len(batches) - 1)

    def train_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step; a loss that is not finite on any rank is counted and changes nothing."""
        embedded = self.embed(batches)
        share, terms = self.loss(embedded)
        names = [name if name.startswith("top1/") else f"loss/{name}" for name in terms]
        read = sum(len(signal) for batch in batches for signal in batch.signals.values())
        counts = [float(self.stop.number > 0), self.bad_windows.tell(list(batches)), read]
        told = share.detach().new_tensor(counts)
        # One collective for everything that all ranks must know.
        *totals, stopping, bad, read = distributed.sum_over_ranks(torch.stack([share, *terms.values(), *told])).tolist()
        self.bad_windows.add(round(bad), round(read))
        self.stopping = stopping > 0
        values = {"loss": totals[0], **dict(zip(names, totals[1:], strict=True))}
        rate = learning_rate(self.config, self.step - self.skipped_steps)
        if math.isfinite(totals[0]):
            self.backward(share, embedded, batches)
            values["gradient_norm"] = self.engine.step(rate)
        else:
            self.skipped_steps += 1
            values["gradient_norm"] = 0.0
        return {**values, "learning_rate": rate}

    def save(self) -> None:
        """Write a checkpoint of the current step; every rank calls it."""
        config, facts = self.config, {**self.facts, "skipped_steps": self.skipped_steps}
        checkpoint.save(config.run_dir, self.step, facts, self.engine.write, config.keep_checkpoints, config.keep_every)


def pretrain(config: PretrainConfig) -> Path:
    """Run or continue a pretraining run; returns its folder. ``exit.json`` in it says why the run ended."""
    trainer = Trainer(config)
    trainer.run()
    engine.stop_process_group()
    return config.run_dir
