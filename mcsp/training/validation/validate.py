"""Evaluate validation subjects during a run: fixed windows and views, the same on any number of ranks.

What is read is the first steps of a schedule of the validation split, so a function of (index hash, seed). Samples are
encoded in chunks whose size depends on the batch alone, which ranks share; one rank then compares all of them as one
process would. So the numbers are a function of the weights, whatever the ranks (on the same kind of device).

Shape letters: C chunks of this rank, M slots, n samples of a chunk, N samples or people, K projection width, D width of
h, E numbers of a target, Q predictions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcsp import distributed
from mcsp.augmentations.views import time_half
from mcsp.batch import Batch
from mcsp.config import BatchConfig, PretrainConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.losses.prediction import MEASURED_IN, TARGETS, Target
from mcsp.schema import Modality
from mcsp.training.metrics import values_of_pairs
from mcsp.training.prediction import connectivity_target, spectrum_target
from mcsp.training.reading.loader import StepDataset
from mcsp.training.reading.schedule import STREAMS, Schedule
from mcsp.training.trainer import Embedded, Trainer, schedule_of
from mcsp.training.validation.measures import effective_rank, half_error, identification, site_accuracy

_MOST_OF_STREAM = 512  # samples per validation batch
_CHUNK = 16  # samples that are encoded together, at most
_LEAST_PEOPLE, _MOST_PEOPLE = 4, 512  # that the measures without labels compare
COLLAPSED_RANK = 2.0  # of z: all people lie on a line, or at one point
PREFIX = "validation/"


def validation_schedule(config: PretrainConfig, corpus: Corpus) -> Schedule | None:
    """What an evaluation reads: batches like those of training; None where the split has nothing for them.

    A stream without a sample in the split is left out, and one has at most 512 samples per batch.
    """
    largest = _MOST_OF_STREAM // (config.sites_per_batch or 1) * (config.sites_per_batch or 1)
    quota = BatchConfig(**{name: min(getattr(config.batch, name), largest) for name in STREAMS})
    schedule = schedule_of(config, corpus, quota, "validation")
    return schedule if schedule.streams else None


def chunks_per_batch(quotas: Sequence[int]) -> int:
    """Into how many equal shares a batch is cut, so that a chunk has at most 16 samples where the quotas allow it."""
    common = math.gcd(*quotas)
    return next((d for d in range(1, common + 1) if common % d == 0 and sum(quotas) <= d * _CHUNK), common)


class Validation:
    """The evaluations of one run; every rank has one and calls :meth:`evaluate` at the same steps."""

    def __init__(self, trainer: Trainer, schedule: Schedule) -> None:
        self.trainer, self.config = trainer, trainer.config
        shares = chunks_per_batch([stream.quota for stream in schedule.streams])
        corpus = trainer.dataset.corpus
        of_share = [StepDataset(corpus, schedule, share, shares) for share in range(shares)]
        chunks = [(dataset, k) for k in range(self.config.validation_batches) for dataset in of_share]
        self.count, self.shares = len(chunks), shares
        # Every rank encodes equally many, as ZeRO-3 needs it: who has none left takes the first again.
        rounds = -(-len(chunks) // trainer.world_size)
        mine = [trainer.rank + i * trainer.world_size for i in range(rounds)]
        self.mine = [chunks[i if i < len(chunks) else 0] for i in mine]

    def evaluate(self) -> dict[str, float]:
        """Losses, retrieval and measures without labels, alike on every rank; names begin with ``validation/``."""
        parts = []
        with torch.no_grad():
            for dataset, k in self.mine:
                self.trainer.clock.enter("validation")
                (batch,) = dataset[k]
                self.trainer.bad_windows.tell([batch])
                parts.append(self._encode(batch.to(self.trainer.device)))
            whole = {name: self._of_all([part[name] for part in parts]) for name in parts[0]}
            values: dict[str, float] = {}
            if distributed.is_main():
                with distributed.alone():
                    values = {**self._losses(whole), **self._measures(whole)}
        (values, *_) = distributed.gather_objects(values)
        return {PREFIX + name: value for name, value in values.items()}

    def _encode(self, batch: Batch) -> dict[str, Tensor]:
        """What one chunk contributes; rows are samples, or windows of one modality."""
        trainer = self.trainer
        z_MnK, valid_Mn, scale_P, error_Qn = trainer.engine(batch)
        found = {"z": z_MnK.float().transpose(0, 1), "valid": valid_Mn.T, "scale": scale_P[None]}
        found |= {"error": error_Qn.float().T, "subject": batch.subject_N, "site": batch.site_N}
        model = trainer.module.model
        for modality, signal in batch.signals.items():
            found[f"row {modality}"], found[f"usable {modality}"] = signal.sample_B, signal.row_valid_B
            late_B = torch.zeros(len(signal), dtype=torch.bool, device=signal.x_BCT.device)
            halves = [time_half(signal, late_B), time_half(signal, ~late_B)]
            for domain in model.config.domains:
                h = [model.encode_domain(modality, domain, half) for half in halves]
                found[f"h {modality}/{domain}"] = torch.stack(h, dim=1).float()
                found[f"z {modality}/{domain}"] = model.project(modality, domain, h[0])
            targets: tuple[Target, ...] = ("connectivity", "spectrum")
            for target in targets:
                if MEASURED_IN[target] in model.config.domains:
                    measure = connectivity_target if target == "connectivity" else spectrum_target
                    y = [measure(model, modality, half) for half in halves]
                    found[f"{target} {modality}"] = torch.stack(y, dim=1).float()
        return found

    def _of_all(self, mine: list[Tensor]) -> Tensor:
        """The chunks of all ranks in the order of the batches, ``(chunks, rows, ...)``."""
        world = self.trainer.world_size
        x_C = torch.stack(mine)
        flat = distributed.gather_rows(x_C.to(torch.uint8) if x_C.dtype == torch.bool else x_C)
        in_order = [(i % world) * len(mine) + i // world for i in range(self.count)]
        return flat[in_order].to(x_C.dtype)

    def _losses(self, whole: dict[str, Tensor]) -> dict[str, float]:
        """Mean over the validation batches of what a training step of them would log."""
        batches = []
        for first in range(0, self.count, self.shares):
            of = {name: value[first : first + self.shares].flatten(0, 1) for name, value in whole.items()}
            z_MnK, valid_Mn, error_Qn = of["z"].transpose(0, 1), of["valid"].T, of["error"].T
            embedded = Embedded(z_MnK, valid_Mn, of["scale"][0], error_Qn, of["subject"], of["site"])
            loss, terms = self.trainer.loss(embedded)
            batches.append({"loss": loss, **terms})
        means = {
            name if name == "loss" or name.startswith("top1/") else f"loss/{name}":
            float(torch.stack([batch[name].double() for batch in batches]).mean())
            for name in batches[0]
        }  # fmt: skip
        return values_of_pairs(self.trainer.config, means)

    def _measures(self, whole: dict[str, Tensor]) -> dict[str, float]:
        """Measures without labels of the first window of each person, by name, modality and domain."""
        values: dict[str, float] = {}
        model = self.trainer.module.model.config
        for modality in model.modalities:
            if f"row {modality}" not in whole:
                continue
            people = self._people(whole, modality)
            of = {name: value.flatten(0, 1)[people].cpu() for name, value in whole.items() if modality in name}
            site_N = whole["site"].gather(1, whole[f"row {modality}"]).flatten()[people].cpu()
            values[f"people/{modality}"] = float(len(people))
            for domain in model.domains:
                h_2ND, z_NK = of[f"h {modality}/{domain}"].transpose(0, 1), of[f"z {modality}/{domain}"]
                targets = [of[f"{t} {modality}"] for t in TARGETS[domain] if f"{t} {modality}" in of]
                found = _of_domain(h_2ND, z_NK, [y.transpose(0, 1) for y in targets], site_N)
                values |= {f"{name}/{modality}/{domain}": value for name, value in found.items()}
        return values

    def _people(self, whole: dict[str, Tensor], modality: Modality) -> list[int]:
        """Rows of one modality, through all chunks: the first of each person that is fit to be learned from."""
        subjects = whole["subject"].gather(1, whole[f"row {modality}"]).flatten().tolist()
        usable = whole[f"usable {modality}"].flatten().tolist()
        first = {subject: row for row, subject in reversed(list(enumerate(subjects))) if usable[row]}
        return sorted(first.values())[:_MOST_PEOPLE]


def _of_domain(h_2ND: Tensor, z_NK: Tensor, targets: list[Tensor], site_N: Tensor) -> dict[str, float]:
    """The measures of one domain of one modality; those that too few people or sites allow no more are left out."""
    found = {"rank_h": effective_rank(h_2ND[0]), "rank_z": effective_rank(z_NK)}
    if len(site_N) >= _LEAST_PEOPLE:
        found["identification"] = identification(h_2ND[0], h_2ND[1])
        if targets:
            found["half_error"] = half_error(h_2ND, torch.cat([y / y.std().clamp_min(1e-30) for y in targets], dim=2))
    inputs = [y.mean(0) / y.std().clamp_min(1e-30) for y in targets]
    for name, x in (("site_h", [h_2ND.mean(0)]), ("site_input", inputs)):
        accuracy = site_accuracy(torch.cat(x, dim=1), site_N) if x else None
        if accuracy is not None:
            found[name] = accuracy
    return found


def collapsed(values: dict[str, float]) -> tuple[list[str], bool]:
    """Modalities and domains in which all embeddings are alike, and whether some modality has no other domain.

    A rank is at most the number of people, so of few people nothing is said.
    """
    start = f"{PREFIX}rank_z/"
    alike = {
        name.removeprefix(start): not rank > COLLAPSED_RANK
        for name, rank in values.items()
        if start in name and values.get(f"{PREFIX}people/{name.split('/')[2]}", _LEAST_PEOPLE) >= _LEAST_PEOPLE
    }
    modalities = {name.split("/")[0] for name in alike}
    whole = any(all(bad for name, bad in alike.items() if name.startswith(m)) for m in modalities)
    return [name for name, bad in alike.items() if bad], whole
