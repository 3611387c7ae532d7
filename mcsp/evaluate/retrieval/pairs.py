"""Cross-modal retrieval: does an EEG window find its own BOLD window among others?

Shape letters: N windows, K projection width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from mcsp.batch import collate
from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.model.mcsp import MCSP
from mcsp.schema import MODALITIES, Recording, Split
from mcsp.windows import common_instants, window_samples, window_start

RETRIEVAL_SEED = 0
Scope = Literal["all sites", "one site", "one person"]


@dataclass(frozen=True)
class PairedCut:
    """An EEG window and the BOLD window that belongs to it, not read yet."""

    eeg: Recording
    eeg_start: int
    fmri: Recording
    fmri_start: int


@dataclass(frozen=True)
class Pairs:
    """Similarities of all EEG windows to all BOLD windows, with whose they are."""

    similarity_NN: np.ndarray  # row: EEG window, column: BOLD window, mean over domains of the cosine
    subject_N: np.ndarray
    site_N: np.ndarray
    holds_N: np.ndarray  # whether both windows hold a signal; else they are neither asked for nor candidates


def find_pairs(
    corpus: Corpus, splits: Sequence[Split], window_seconds: dict[Any, float], delay_seconds: float
) -> list[PairedCut]:
    """Pairs of simultaneous windows of the given splits; two pairs of one sample never overlap in time.

    The BOLD window starts ``delay_seconds`` after the EEG window on the clock that both recordings share. Samples
    without such a clock have none.
    """
    length = {m: window_seconds[m] for m in MODALITIES}
    cuts = []
    for split in splits:
        for recordings in corpus.samples(split).values():
            timed = {m: [r for r in recordings if r.modality == m and np.isfinite(r.onset_seconds)] for m in MODALITIES}
            if not timed["eeg"] or not timed["fmri"]:
                continue
            eeg, fmri = timed["eeg"][0], timed["fmri"][0]
            free = -np.inf
            for first, last in common_instants(eeg, fmri, window_seconds, delay_seconds):
                for t in np.arange(max(first, free), last + 1e-6, max(length.values())):
                    eeg_start = window_start(eeg, t, length["eeg"])
                    cuts.append(PairedCut(eeg, eeg_start, fmri, window_start(fmri, t + delay_seconds, length["fmri"])))
                    free = t + max(length.values())
    return cuts


def similarities(model: MCSP, corpus: Corpus, cuts: Sequence[PairedCut], config: EvaluateConfig, title: str) -> Pairs:
    """Project every window of ``cuts`` and compare all EEG windows with all BOLD windows."""
    assert config.window_seconds is not None
    device = next(model.parameters()).device
    seconds, domains = config.window_seconds, model.config.domains
    z: dict[str, list[np.ndarray]] = {m: [] for m in MODALITIES}
    holds: list[np.ndarray] = []
    for first in tqdm(range(0, len(cuts), config.batch_size), desc=title, unit="batch", leave=False):
        samples = [
            [
                corpus.read_window(c.eeg, c.eeg_start, window_samples(c.eeg, seconds["eeg"])),
                corpus.read_window(c.fmri, c.fmri_start, window_samples(c.fmri, seconds["fmri"])),
            ]
            for c in cuts[first : first + config.batch_size]
        ]
        with torch.inference_mode():
            signals = collate(samples).to(device).signals
            holds.append(np.all([signals[m].row_valid_B.cpu().numpy() for m in MODALITIES], axis=0))
            encoded = model.encode(signals)
            for modality in MODALITIES:
                parts = [model.project(modality, d, encoded[modality][d]) for d in domains]
                z[modality].append(torch.cat(parts, dim=-1).double().cpu().numpy())
    eeg_NK, fmri_NK = np.concatenate(z["eeg"]), np.concatenate(z["fmri"])
    return Pairs(
        similarity_NN=eeg_NK @ fmri_NK.T / len(domains),
        subject_N=np.array([f"{c.eeg.site}/{c.eeg.subject}" for c in cuts]),
        site_N=np.array([c.eeg.site for c in cuts]),
        holds_N=np.concatenate(holds),
    )


def top1(
    pairs: Pairs, size: int, draws: int, scope: Scope = "all sites", query_N: np.ndarray | None = None
) -> dict[str, Any] | None:
    """Top-1 accuracy of random sets of ``size`` candidates, or of as many as there are.

    Each draw takes ``size`` pairs, of one site or one person if ``scope`` says so (they take turns); each of its EEG
    windows ranks all of its BOLD windows.

    Args:
        pairs: what is compared.
        size: candidates of a draw.
        draws: their number, at least one for each site or person.
        scope: where the candidates of a draw are from.
        query_N: the EEG window that stands in for each one, -1 where none does: these are not asked for.

    Returns:
        ``top1`` and its ``sd`` over draws, ``chance`` (mean of 1 / candidates), ``top1_subject`` (the best candidate is
        of the same subject) with ``chance_subject``, ``candidates`` (fewest in a draw) and ``requested``. None where
        nothing can be asked.
    """
    query_N = np.arange(len(pairs.site_N)) if query_N is None else query_N
    query_N = np.where(pairs.holds_N & pairs.holds_N[query_N], query_N, -1)
    owner_N = {"all sites": np.zeros(len(query_N)), "one site": pairs.site_N, "one person": pairs.subject_N}[scope]
    pools = [np.flatnonzero(pairs.holds_N & (owner_N == owner)) for owner in np.unique(owner_N)]
    pools = [pool for pool in pools if len(pool) > 1]
    rng = np.random.default_rng(RETRIEVAL_SEED)
    rows = []
    for draw in range(max(draws, len(pools)) if pools else 0):
        pool = pools[draw % len(pools)]
        chosen = np.sort(rng.choice(pool, min(size, len(pool)), replace=False))
        asked = chosen[query_N[chosen] >= 0]
        if not len(asked):
            continue
        best = chosen[pairs.similarity_NN[np.ix_(query_N[asked], chosen)].argmax(axis=1)]
        same_NN = pairs.subject_N[asked][:, None] == pairs.subject_N[chosen]
        own_subject = pairs.subject_N[best] == pairs.subject_N[asked]
        rows.append(((best == asked).mean(), 1 / len(chosen), own_subject.mean(), same_NN.mean(), len(chosen)))
    if not rows:
        return None
    hit, chance, subject, chance_subject, candidates = np.array(rows).T
    return {
        "top1": float(hit.mean()),
        "sd": float(hit.std()),
        "chance": float(chance.mean()),
        "top1_subject": float(subject.mean()),
        "chance_subject": float(chance_subject.mean()),
        "candidates": int(candidates.min()),
        "requested": size,
        "draws": len(rows),
        "windows": int((query_N >= 0).sum()),
        "subjects": len(set(pairs.subject_N[query_N >= 0])),
    }
