"""One step of pretraining (embeddings, objective, gradients, update), and the state that a checkpoint keeps."""

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsp import distributed
from mcsp.batch import Batch
from mcsp.config import BatchConfig, PretrainConfig
from mcsp.config.pretrain import learning_rate
from mcsp.data_sharding.store.reader import Corpus
from mcsp.losses.objective import objective
from mcsp.losses.shuffled import subjects_of_blocks
from mcsp.model.layers import LEAST_DISTANCE_MM
from mcsp.outside import read_object
from mcsp.schema import Split
from mcsp.training import engine
from mcsp.training.clock import Clock
from mcsp.training.health import BadWindows, Health, clean
from mcsp.training.metrics import Metrics
from mcsp.training.pretrainer import Pretrainer
from mcsp.training.reading.loader import StepDataset
from mcsp.training.reading.schedule import Schedule
from mcsp.training.saving import checkpoint
from mcsp.training.saving.continues import changes, in_words, start_from
from mcsp.training.saving.mirror import Mirror, restore
from mcsp.training.saving.saver import Saver
from mcsp.training.stopping import EXIT_DATA, RunEnded
from mcsp.training.watchdog import wait_together
from mcsp.wording import listed


def for_corpus(config: PretrainConfig, corpus: Corpus) -> PretrainConfig:
    """The config with the model's modalities reduced to those that the batch quotas ask for, and the corpus's parcels.

    Raises:
        ValueError: no quota asks for any modality of the model, or it is to read BOLD at parcels that the corpus lacks.
    """
    asked = {"eeg": config.batch.paired + config.batch.eeg, "fmri": config.batch.paired + config.batch.fmri}
    modalities = tuple(m for m in config.model.modalities if asked[m])
    if not modalities:
        raise ValueError(
            f"batch {config.batch.dump()} asks for none of the model's modalities {config.model.modalities}"
        )
    changes: dict[str, Any] = {"modalities": modalities}
    if config.model.fmri_parcels == "corpus":
        changes["fmri_parcels"] = shared_parcels(corpus) if "fmri" in modalities else ()
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def shared_parcels(corpus: Corpus) -> tuple[tuple[float, ...], ...]:
    """Positions [mm] of the one atlas of all BOLD in the training split.

    Raises:
        ValueError: several atlases, parcels without a position, or centres too near each other to be told apart.
    """
    bold = [r for r in corpus.recordings if (r.modality, r.split) == ("fmri", "train")]
    expected = f"{corpus.path}: model.fmri_parcels=corpus: expected BOLD of one atlas"
    atlases = {(tuple(r.channels), r.positions_C3.tobytes()): r for r in bold}
    if len(atlases) != 1:
        found = listed([f"{r.n_channels} parcels of {r.site}" for r in atlases.values()], 5) or "no BOLD"
        raise ValueError(f"{expected}, found {len(atlases)} ({found}); leave the setting out")
    positions_P3 = torch.from_numpy(bold[0].positions_C3).double()
    unknown = [n for n, xyz in zip(bold[0].channels, positions_P3, strict=True) if not bool(xyz.isfinite().all())]
    if unknown:
        raise ValueError(f"{expected} with a position for every parcel, found none of {listed(unknown, 3)}")
    least = float(torch.pdist(positions_P3).min()) if len(positions_P3) > 1 else 0.0
    if least < LEAST_DISTANCE_MM:
        raise ValueError(f"{expected} with centres {LEAST_DISTANCE_MM:g} mm apart or more, found two {least:.1f} apart")
    return tuple(tuple(round(value, 3) for value in xyz) for xyz in positions_P3.tolist())


def values_of_pairs(config: PretrainConfig, values: dict[str, float]) -> dict[str, float]:
    """``values`` without those of two modalities where no batch holds a pair: they would be 0 throughout."""
    return {name: value for name, value in values.items() if config.batch.paired or "/fmri-eeg/" not in name}


class Embedded(NamedTuple):
    """What the objective compares, of this rank."""

    z_MnK: Tensor
    valid_Mn: Tensor
    scale_P: Tensor
    error_Qn: Tensor
    subject_n: Tensor
    site_n: Tensor


_log = logging.getLogger(__name__)
_STEPS_OF_START = 8  # whose windows say where spatial tokens start


def schedule_of(
    config: PretrainConfig, corpus: Corpus, quota: BatchConfig | None = None, split: Split = "train"
) -> Schedule:
    """What the steps of a run read from a split; ``quota`` where it is not that of the run."""
    schedule = Schedule(
        corpus.recordings, index_hash=corpus.index_hash, seed=config.seed, quota=quota or config.batch,
        window_seconds=config.window_seconds, delay_seconds=config.hemodynamic_delay_seconds,
        site_temperature=config.site_temperature, shuffle_shards=config.shuffle_shards,
        sites_per_batch=config.sites_per_batch, split=split,
    )  # fmt: skip
    if schedule.left_out and split == "train" and distributed.rank() == 0:
        _log.warning("recordings without a window of enough valid time, left out, by site: %s", schedule.left_out)
    return schedule


class Trainer:
    """One run. Every rank makes one and calls the same methods."""

    def __init__(self, config: PretrainConfig, clock: Clock | None = None, asked: Callable[[], str] = str) -> None:
        """Open the corpus, build the model, and resume if there is something to resume.

        Args:
            config: the run.
            clock: told about every phase and collective.
            asked: says in words who asked this rank to stop; nothing while nobody has.

        Raises:
            ValueError: a corpus, batch, checkpoint, init_from or number of ranks that does not fit, in one line.
        """
        corpus = Corpus(config.corpus_dir, config.cache_dir, config.cache_gb)
        self.config = for_corpus(config, corpus)
        engine.start_process_group()
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.device = engine.device()
        self.clock, self.asked = clock or Clock(self.device), asked
        distributed.around_collectives = self.clock.collective
        self.clock.watch_collectives(engine.collectives())
        self.step, self.health, self.useful_seconds = 0, Health(config.health), 0.0
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
            compile_blocks=config.compile,
        )
        if found is None and config.init_from:
            self._say(f"starts from the {start_from(config.init_from, self.module, self.config.model)}")
        elif found is None and config.spatial_start == "corpus":
            self.module.start_at(
                [batch for step in range(_STEPS_OF_START) for batch in self.dataset[step]], self.device
            )
        self.engine = engine.Engine(self.module, config, self.world_size, schedule.global_batch)
        self.bad_windows = BadWindows(config.max_bad_windows)
        # Evaluations in a row with embeddings all alike; value and step of the best one.
        self.validated: dict[str, Any] = {"collapsed": 0, "best": None, "best_step": None}
        keep, self.mirror = (config.keep_checkpoints, config.keep_every), None
        if config.mirror_dir and self.rank == 0:
            self.mirror = Mirror(config.run_dir, config.mirror_dir, *keep)
        finished = self.mirror.finished if self.mirror else None
        self.saver = Saver(config.run_dir, *keep, self.device, finished)
        self.changed: dict[str, str] = {}  # since the checkpoint that this start continues
        self.stopping = False  # some rank was asked to stop; the same on all ranks
        self.facts = {
            "index_hash": corpus.index_hash,
            "world_size": self.world_size,
            "zero_stage": self.engine.zero_stage,
            "arithmetic": self.engine.arithmetic,
            "config": self.config.dump(),
            "model_config": self.config.model.dump(),
        }
        if found is not None:
            self._resume(found)

    def _newest_checkpoint(self) -> Path | None:
        """The checkpoint to continue from. One rank looks and tells the others: they must not choose differently."""
        with ThreadPoolExecutor(1) as aside:  # fetching one may take longer than ranks may hang
            looked = aside.submit(self._look) if self.rank == 0 else None
            wait_together(self.clock, lambda seconds: looked is None or bool(wait([looked], seconds).done))
            found, problem = distributed.gather_objects(looked.result() if looked else None)[0]
        if problem:
            raise ValueError(problem)
        return found

    def _look(self) -> tuple[Path | None, str]:
        """The checkpoint to continue from, and what stands against it."""
        run_dir = self.config.run_dir
        try:
            if self.config.mirror_dir:
                restore(self.config.mirror_dir, run_dir, self.config.resume)
            return checkpoint.to_continue(run_dir, self.config.resume), ""
        except OSError as error:
            return None, f"{run_dir}: cannot look for checkpoints ({error.strerror})"
        except ValueError as error:
            return None, str(error)

    def _resume(self, path: Path) -> None:
        manifest = read_object(path / checkpoint.MANIFEST)
        self.changed = changes(path, manifest, self.facts)
        self.engine.load(path)
        self.step, self.useful_seconds = manifest["step"], manifest["useful_seconds"]
        self.health.load_state(manifest["health"])
        self.validated = manifest.get("validated", self.validated)  # not in a checkpoint of before
        saved, now = manifest["config"], self.config.dump()
        if any(saved.get(k) != now[k] for k in ("keep_best", "validation_batches")):
            self.validated |= {"best": None, "best_step": None}  # of another quantity
        for sentence in in_words(path, manifest, self.facts):
            self._say(sentence)
        if self.step >= self.config.steps:
            length = self.config.schedule_steps or self.config.steps
            self._say(
                f"finished before, after {self.step} steps; to lengthen the run set steps above that and "
                f"schedule_steps={length} (further steps keep the final learning rate)"
            )

    def _say(self, sentence: str) -> None:
        if self.rank == 0:
            print(f"pretrain: {sentence}", file=sys.stderr, flush=True)

    def roll_back(self, metrics: Metrics | None) -> None:
        """Return to the last checkpoint from before the bad steps, and read on behind the data that was read since."""
        self.saver.finish()
        many = self.health.why_back
        if self.health.rollbacks >= self.config.health.max_rollbacks:
            raise RunEnded("too many rollbacks", f"{many} after {self.health.rollbacks} rollbacks", EXIT_DATA)
        found: list[Any] = [None]
        if self.rank == 0:
            # One saved while something was wrong would lead back to here.
            found = [checkpoint.latest_checkpoint(self.config.run_dir, lambda m: clean(m["health"]))]
        with distributed.around_collectives():
            torch.distributed.broadcast_object_list(found)
        path: Path | None = found[0]
        if path is None:
            raise RunEnded("no way back", f"{many}, and there is no checkpoint from before", EXIT_DATA)
        manifest = read_object(path / checkpoint.MANIFEST)
        steps = self.step - manifest["step"]
        self.engine.load(path)
        if self.rank == 0:
            checkpoint.drop_after(self.config.run_dir, manifest["step"])
        self.step, self.useful_seconds = manifest["step"], manifest["useful_seconds"]
        self.health.rolled_back(manifest["health"], steps)
        self.validated = manifest.get("validated", self.validated)
        self.clock.split()
        if metrics:
            skipped = f"{self.step + self.health.data_offset - steps} to {self.step + self.health.data_offset - 1}"
            metrics.event("rollback", self.step, because=many, checkpoint=path.name, data_skipped=skipped)
            metrics.rewind(self.step)

    def embed(self, batches: Sequence[Batch]) -> Embedded:
        """Embeddings of this rank's micro-batches; of more than one without a graph, to be made again in backward."""
        if len(batches) == 1:
            z_MnK, valid_Mn, scale_P, error_Qn = self.engine(batches[0])
        else:
            with torch.no_grad():
                parts = zip(*(self.engine(batch) for batch in batches), strict=True)
                z_parts, valid_parts, scale_parts, error_parts = parts
            z_MnK, valid_Mn = torch.cat(z_parts, 1).requires_grad_(), torch.cat(valid_parts, 1)
            scale_P, error_Qn = scale_parts[0].clone().requires_grad_(), torch.cat(error_parts, 1).requires_grad_()
        shuffled = self.config.objective.shuffled_pairs is not None
        subject_n = torch.cat([subjects_of_blocks(b) if shuffled else b.subject_N for b in batches])
        site_n = torch.cat([b.site_N for b in batches])
        return Embedded(z_MnK, valid_Mn, scale_P, error_Qn, subject_n, site_n)

    def loss(self, embedded: Embedded, retrieval: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's share of the loss and of every term, over the batch of all ranks and micro-batches."""
        config = self.config.objective
        return objective(*embedded, config, self.module.terms, self.module.predictions, retrieval=retrieval)

    def backward(self, share: Tensor, embedded: Embedded, batches: Sequence[Batch]) -> None:
        """Gradients of the parameters, one micro-batch after the other (GradCache, arXiv 2101.06983).

        The views of a micro-batch are a function of its keys, so the second pass embeds what the first one did.
        """
        if len(batches) == 1:
            self.engine.backward(share)
            return
        cached = (embedded.z_MnK, embedded.error_Qn, embedded.scale_P)
        grad_MnK, grad_Qn, grad_P = torch.autograd.grad(share, cached)
        parts = zip(batches, grad_MnK.chunk(len(batches), dim=1), grad_Qn.chunk(len(batches), dim=1), strict=True)
        for i, (batch, part_MnK, part_Qn) in enumerate(parts):
            z_MnK, _, scale_P, error_Qn = self.engine(batch)
            stand_in = (z_MnK * part_MnK).sum() + (error_Qn * part_Qn).sum()
            stand_in = stand_in + (scale_P * grad_P).sum() * float(i == 0)
            self.engine.backward(stand_in, last=i == len(batches) - 1)

    def train_step(self, batches: Sequence[Batch], metrics: Metrics | None = None) -> dict[str, float]:
        """One optimizer step; a loss or gradient that is not finite, or spikes, is counted and changes nothing.

        Where the step is evaluated, also the gradient norm of each part of the model.
        """
        self.clock.step = self.step
        self.clock.enter("forward")
        embedded = self.embed(batches)
        share, terms = self.loss(embedded, self.config.is_logged(self.step + 1))
        names = [name if name.startswith("top1/") else f"loss/{name}" for name in terms]
        read = sum(len(signal) for batch in batches for signal in batch.signals.values())
        left_out = sum((Counter(batch.left_out) for batch in batches), Counter[str]())
        counts = [float(bool(self.asked())), left_out.total(), self.bad_windows.tell(list(batches)), read]
        told = torch.stack([share, *terms.values(), *share.detach().new_tensor(counts)])
        # One collective for everything that all ranks must know; it is read when the gradient's norm is.
        summed = distributed.over_ranks(told, "sum")
        told = torch.cat([summed, embedded.scale_P.detach().to(summed.dtype)])
        rate = learning_rate(self.config, self.step - self.health.skipped_steps)
        details: dict[str, float] = {}
        in_detail = self.config.is_evaluated(self.step + 1)
        norm, found = self._update(share, told, rate, embedded, batches, metrics, details if in_detail else None)
        (*totals, stopping, left, bad, n_read), scales = found[: len(summed)], found[len(summed) :]
        self.bad_windows.add(round(bad), round(n_read), distributed.gather_objects(left_out) if left else [])
        self.stopping = stopping > 0
        self.step += 1
        temperatures = {
            f"temperature/{term.name}": 1 / scale for term, scale in zip(self.module.terms, scales, strict=True)
        }
        values = {**dict(zip(["loss", *names], totals, strict=True)), **temperatures}
        values = values_of_pairs(self.config, values)
        for batch in batches:
            for stream, seconds in batch.read_seconds.items():
                values[f"read_seconds/{stream}"] = values.get(f"read_seconds/{stream}", 0.0) + seconds
            for modality, part in batch.real_share.items():
                name = f"real_share/{modality}"
                values[name] = values.get(name, 0.0) + part / len(batches)
        return {**values, "gradient_norm": norm, "learning_rate": rate, **details}

    def _update(
        self,
        share: Tensor,
        told: Tensor,
        rate: float,
        embedded: Embedded,
        batches: Sequence[Batch],
        metrics: Metrics | None,
        details: dict[str, float] | None,
    ) -> tuple[float, list[float]]:
        """Take the step, unless loss or gradient forbid it; the gradient's norm, and the numbers of ``told``.

        The first of ``told`` is the loss. Where it forbids the step the norm is NaN. ``details`` gets the norm of each
        part.
        """
        health = self.health
        loss_limit, norm_limit = health.loss_limit(), health.norm_limit()

        def fault_of(norm: float, loss: float) -> str:
            return health.fault("loss", loss, loss_limit) or health.fault("gradient norm", norm, norm_limit)

        self.clock.enter("backward")
        self.backward(share, embedded, batches)
        self.clock.enter("optimizer")
        if details is not None:
            details |= {f"gradient_norm/{part}": value for part, value in self.engine.group_norms().items()}
        norm, found = self.engine.step(rate, lambda norm, found: not fault_of(norm, found[0]), told)
        loss, fault = found[0], fault_of(norm, found[0])
        of_loss = bool(health.fault("loss", loss, loss_limit))
        new_level = health.seen(loss, None if of_loss else norm, counted=not fault)
        if fault:
            facts = self._what_was_read(embedded, batches)
            if metrics:
                metrics.event("skip", self.step + 1, because=fault, data=self.step + health.data_offset, **facts)
        if new_level and metrics:
            metrics.event("new level", self.step + 1, of=new_level)
        return math.nan if of_loss else norm, found

    def _what_was_read(self, embedded: Embedded, batches: Sequence[Batch]) -> dict[str, Any]:
        """Ranks and keys of the samples whose embeddings are not finite; where all are, the keys of the whole batch."""
        finite_n = embedded.z_MnK.detach().isfinite().all(2).all(0) & embedded.error_Qn.detach().isfinite().all(0)
        keys = [key for batch in batches for key in batch.keys]
        bad = [key for key, finite in zip(keys, finite_n.tolist(), strict=True) if not finite]
        of_ranks = distributed.gather_objects((bad, keys))
        ranks = [rank for rank, (bad, _) in enumerate(of_ranks) if bad]
        if not ranks:
            return {"samples": sorted({key for _, keys in of_ranks for key in keys})}
        return {"not_finite_on_ranks": ranks, "samples": sorted({key for bad, _ in of_ranks for key in bad})}

    def save(self) -> None:
        """Begin to write a checkpoint of the current step; every rank calls it."""
        state = {"useful_seconds": self.useful_seconds, "health": self.health.state()}
        facts = {**self.facts, **state, "validated": self.validated}
        # No checkpoint of weights in doubt takes the place of an older one: that may be the only way back.
        self.saver.begin(self.step, facts, self.engine.copy_state(), retire=not self.in_doubt)

    @property
    def in_doubt(self) -> bool:
        """Whether the weights may be bad; the same on every rank."""
        return self.health.doubtful or bool(self.validated["collapsed"])
