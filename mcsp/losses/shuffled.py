"""Exchange of views between people of a site: the control of shuffled pairs.

Samples of one site (and of the same modalities) form blocks of four. Every domain and view of a sample comes from
another member of its block, so that no contrasted pair and no prediction is of one person, while all that a site and
its scanner have in common stays. A block counts as one subject: a person's own other view is no negative either.

Shape letters: n samples of this rank, B rows of a modality, K members of a block.
"""

import torch
from torch import Tensor

from mcsp.batch import Batch
from mcsp.losses.objective import Slot
from mcsp.schema import DOMAINS

BLOCK = 4  # the domains and views of one modality, and two modalities, need so many that differ where they are compared


def blocks(batch: Batch) -> list[Tensor]:
    """Numbers of the samples of each block: four, more in the last one of a site, fewer where it has not so many."""
    kind_n = torch.zeros(len(batch), dtype=torch.int64, device=batch.site_N.device)
    for bit, signal in enumerate(batch.signals.values()):
        kind_n[signal.sample_B] += 1 << bit
    group_n = torch.unique(torch.stack([batch.site_N, kind_n]), dim=1, return_inverse=True)[1]
    found: list[Tensor] = []
    for group in range(int(group_n.max()) + 1):
        members = torch.nonzero(group_n == group)[:, 0]
        found += members.tensor_split([BLOCK * i for i in range(1, len(members) // BLOCK)])
    return found


def places_Kn(batch: Batch) -> Tensor:
    """Which sample stands in for each one, ``(4, n)`` int64; row 0 is the sample itself, alone it is so in all rows."""
    found = torch.arange(len(batch), device=batch.site_N.device).repeat(BLOCK, 1)
    for block in blocks(batch):
        for k in range(BLOCK):
            found[k, block] = block.roll(-k)
    return found


def place(slot: Slot) -> int:
    """Which row of :func:`places_Kn` a slot takes: another one than every slot that it is compared with."""
    return (DOMAINS.index(slot.domain) + (slot.modality == "eeg") + slot.view) % BLOCK


def subjects_of_blocks(batch: Batch) -> Tensor:
    """``batch.subject_N`` with one key for all members of a block."""
    subject_n = batch.subject_N.clone()
    for block in blocks(batch):
        subject_n[block] = batch.subject_N[block[0]]
    return subject_n


def other_rows(batch_places_Kn: Tensor, sample_B: Tensor) -> Tensor:
    """Row of the next member of each row's block, ``(B,)``, for what a row is to predict."""
    row_n = torch.zeros(batch_places_Kn.shape[1], dtype=torch.int64, device=sample_B.device)
    row_n[sample_B] = torch.arange(len(sample_B), device=sample_B.device)
    return row_n[batch_places_Kn[1, sample_B]]
