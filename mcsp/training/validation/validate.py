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
from mcsp.augmentations.views import halves
from mcsp.batch import Batch, Signal, rows_of
from mcsp.config import BatchConfig, PretrainConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import Modality
from mcsp.training.prediction import TARGETS, target_of
from mcsp.training.reading.loader import StepDataset
from mcsp.training.reading.schedule import STREAMS, Schedule
from mcsp.training.trainer import Embedded, Trainer, schedule_of, values_of_pairs
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


def _facts(batch: Batch) -> dict[str, Tensor]:
    """What tells the people of a chunk: subject and site of samples; sample of each window, and whether it is fit."""
    found = {"subject": batch.subject_N, "site": batch.site_N}
    for modality, signal in batch.signals.items():
        found |= {f"row {modality}": signal.sample_B, f"usable {modality}": signal.row_valid_B}
    return found


class Validation:
    """The evaluations of one run; every rank has one and calls :meth:`evaluate` at the same steps."""

    def __init__(self, trainer: Trainer, schedule: Schedule) -> None:
        self.trainer, self.config = trainer, trainer.config
        shares = chunks_per_batch([stream.quota for stream in schedule.streams])
        corpus = trainer.dataset.corpus
        of_share = [StepDataset(corpus, schedule, share, shares) for share in range(shares)]
        self.chunks = [(dataset, k) for k in range(self.config.validation_batches) for dataset in of_share]
        self.shares = shares
        # Every rank encodes equally many, as ZeRO-3 needs it: who has none left takes the first again.
        rounds = -(-len(self.chunks) // trainer.world_size)
        mine = [trainer.rank + i * trainer.world_size for i in range(rounds)]
        self.mine = [i if i < len(self.chunks) else 0 for i in mine]

    def evaluate(self) -> dict[str, float]:
        """Losses, retrieval and measures without labels, alike on every rank; names begin with ``validation/``."""
        batches = []
        for dataset, k in (self.chunks[i] for i in self.mine):
            self.trainer.clock.enter("validation")
            (batch,) = dataset[k]
            self.trainer.bad_windows.tell([batch])
            batches.append(batch)
        whole = self._of_all([_facts(batch) for batch in batches])
        people = {m: self._people(whole, m) for m in batches[0].signals}
        with torch.no_grad():
            parts = []
            for i, batch in zip(self.mine, batches, strict=True):
                self.trainer.clock.enter("validation")
                own = {m: range(i * len(s), (i + 1) * len(s)) for m, s in batch.signals.items()}
                new = {m: [row - own[m].start for row in rows if row in own[m]] for m, rows in people.items()}
                parts.append(self._encode(batch.to(self.trainer.device), new))
            whole |= self._of_all(parts)
            values: dict[str, float] = {}
            if distributed.is_main():
                with distributed.alone():
                    values = {**self._losses(whole), **self._measures(whole, people)}
        (values, *_) = distributed.gather_objects(values)
        return {PREFIX + name: value for name, value in values.items()}

    def _encode(self, batch: Batch, people: dict[Modality, list[int]]) -> dict[str, Tensor]:
        """What one chunk contributes; rows are samples, or windows of one modality.

        Halves are encoded of the rows of ``people`` alone, which are compared; in other rows they are zero.
        """
        z_MnK, valid_Mn, scale_P, error_Qn = self.trainer.engine(batch)
        found = {"z": z_MnK.float().transpose(0, 1), "valid": valid_Mn.T, "scale": scale_P[None]}
        found["error"] = error_Qn.float().T
        for modality, signal in batch.signals.items():
            # At least one: ZeRO-3 needs the same calls in every chunk.
            rows_R = torch.tensor(people[modality] or [0], device=signal.sample_B.device)
            for name, x_R in self._of_halves(modality, rows_of(signal, rows_R)).items():
                found[name] = x_R.new_zeros(len(signal), *x_R.shape[1:]).index_copy(0, rows_R, x_R)
        return found

    def _of_halves(self, modality: Modality, signal: Signal) -> dict[str, Tensor]:
        """Embeddings of both halves of windows and what is measured in each, ``(rows, 2, ...)``; z of the early one."""
        model, rows = self.trainer.module.model, len(signal)
        late_B = torch.zeros(rows, dtype=torch.bool, device=signal.x_BCT.device)
        both = halves(signal, late_B)
        found = {}
        for domain in model.config.domains:
            measured = model.encoder(modality, domain).measure(both)
            h_BD = model.encode_measured(modality, domain, measured)
            found[f"h {modality}/{domain}"] = h_BD.float().unflatten(0, (2, rows)).transpose(0, 1)
            found[f"z {modality}/{domain}"] = model.project(modality, domain, h_BD[:rows])
            if target := target_of(measured):
                found[f"{target[0]} {modality}"] = target[1].float().unflatten(0, (2, rows)).transpose(0, 1)
        return found

    def _of_all(self, mine: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The chunks of all ranks in the order of the batches, ``(chunks, rows, ...)`` each."""
        world = self.trainer.world_size
        in_order = [(i % world) * len(mine) + i // world for i in range(len(self.chunks))]
        whole = {}
        for name in mine[0]:
            x_C = torch.stack([part[name] for part in mine]).to(self.trainer.device)
            flat = distributed.gather_rows(x_C.to(torch.uint8) if x_C.dtype == torch.bool else x_C)
            whole[name] = flat[in_order].to(x_C.dtype)
        return whole

    def _losses(self, whole: dict[str, Tensor]) -> dict[str, float]:
        """Mean over the validation batches of what a training step of them would log."""
        batches = []
        for first in range(0, len(self.chunks), self.shares):
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

    def _measures(self, whole: dict[str, Tensor], people: dict[Modality, list[int]]) -> dict[str, float]:
        """Measures without labels of the first window of each person, by name, modality and domain."""
        values: dict[str, float] = {}
        model = self.trainer.module.model.config
        for modality in (m for m in model.modalities if m in people):
            rows = people[modality]
            of = {name: value.flatten(0, 1)[rows].cpu() for name, value in whole.items() if modality in name}
            site_N = whole["site"].gather(1, whole[f"row {modality}"]).flatten()[rows].cpu()
            values[f"people/{modality}"] = float(len(rows))
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
    if not len(site_N):
        return {}
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
