"""Cross-modal retrieval: does an EEG window find its own BOLD window among others?

Controls are another person's EEG, EEG of another minute, time in the run, and band power.

A schedule that all people share (a task, drowsiness, the warming of a scanner) lets time alone find windows, and then
so does the EEG of somebody else. Both, and a ridge regression from the EEG's band power, stand beside every number.

Shape letters: N windows, G times of a BOLD window, F frames of an EEG window, K band powers
or the width of a projection, R points of the brain.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.stats import gamma
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from mcsp.batch import collate, valid_times
from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.evaluate import measured
from mcsp.evaluate.methods import PRETRAINED
from mcsp.model.mcsp import MCSP
from mcsp.schema import MODALITIES, Modality, Recording, Split
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


SHIFT_SECONDS = 60.0  # least distance of an EEG window that stands for another minute of the same recording
SAME_TIME_SECONDS = 5.0  # most distance of two people's windows, each in its own run, that count as of the same time
FRAME_SECONDS = 2.0  # of band power, and between the times at which BOLD is predicted
TIME_POWERS = 5  # of the time in the run, as a polynomial: slow enough for any schedule of some minutes
Courses = tuple[np.ndarray | None, np.ndarray | None]  # of a window's BOLD, and of what its band power lets expect
PENALTIES = np.logspace(0, 5, 6)
FOLDS = 5  # of people
OTHER_PERSON, OTHER_MINUTE = "EEG of another person, same time", "EEG of the person, another minute"
RIDGES = {"band power": "ridge from band power", "time": "time in the run alone"}
CONTROLS = (OTHER_PERSON, OTHER_MINUTE, *RIDGES.values())
GROUPS: dict[str, tuple[Split, ...]] = {"held out": ("validation", "test"), "training": ("train",)}


def minute_of(cut: PairedCut) -> float:
    """Seconds of an EEG window since its recording began."""
    return cut.eeg_start / cut.eeg.sfreq


def other_people(cuts: Sequence[PairedCut]) -> np.ndarray:
    """For each window one of another person of the site at the same time in the run, drawn; -1 where there is none."""
    minute_N, (site_N, subject_N, _) = np.array([minute_of(cut) for cut in cuts]), _owners(cuts)
    return _drawn(
        (site_N == site_N[i]) & (subject_N != subject_N[i]) & (np.abs(minute_N - minute_N[i]) <= SAME_TIME_SECONDS)
        for i in range(len(cuts))
    )


def other_minutes(cuts: Sequence[PairedCut]) -> np.ndarray:
    """For each window another one of the same recording, a minute or more away, drawn; -1 where there is none."""
    minute_N, (_, _, recording_N) = np.array([minute_of(cut) for cut in cuts]), _owners(cuts)
    return _drawn(
        (recording_N == recording_N[i]) & (np.abs(minute_N - minute_N[i]) >= SHIFT_SECONDS) for i in range(len(cuts))
    )


def _owners(cuts: Sequence[PairedCut]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Site, subject and recording of each EEG window."""
    subjects = [f"{cut.eeg.site}/{cut.eeg.subject}" for cut in cuts]
    recordings = [f"{cut.eeg.shard}/{cut.eeg.member}" for cut in cuts]
    return np.array([cut.eeg.site for cut in cuts]), np.array(subjects), np.array(recordings)


def _drawn(fitting: Iterable[np.ndarray]) -> np.ndarray:
    rng = np.random.default_rng(RETRIEVAL_SEED)
    return np.array([rng.choice(np.flatnonzero(fits_N)) if fits_N.any() else -1 for fits_N in fitting])


def ridge_similarities(
    corpus: Corpus,
    cuts: Sequence[PairedCut],
    window_seconds: Mapping[Modality, float],
    delay_seconds: float,
    others: Sequence[PairedCut] = (),
    known: dict[tuple[str, str, int], Courses] | None = None,
) -> dict[str, np.ndarray]:
    """How alike BOLD windows are to what a ridge regression expects, ``(N, N)``: rows are what it expects from.

    ``band power``: the logarithm of the EEG's band power at scalp regions, through the canonical haemodynamic response;
    ``time``: the time in the run and nothing else. Fitted on other people than those it is asked about, in folds; what
    is compared are courses at points of the brain, as their correlation over points and times.

    Args:
        corpus: where the recordings lie.
        cuts: N windows that are compared.
        window_seconds: as they were cut.
        delay_seconds: of the BOLD window.
        others: windows of further people, to be fitted on too.
        known: what was measured before with the same lengths, by shard, member and start of the EEG; it is added to.
    """
    every = [*cuts, *others]
    known = {} if known is None else known
    times_G = FRAME_SECONDS * (np.arange(max(2, int(window_seconds["fmri"] / FRAME_SECONDS))) + 0.5)
    keys = [(cut.eeg.shard, cut.eeg.member, cut.eeg_start) for cut in every]
    for key, cut in zip(keys, every, strict=True):
        if key not in known:
            known[key] = (
                _bold(corpus, cut, window_seconds["fmri"], times_G),
                _power(corpus, cut, window_seconds["eeg"], times_G + delay_seconds),
            )
    bold, power = [known[key][0] for key in keys], [known[key][1] for key in keys]
    # In units of ten minutes.
    times = [(minute_of(cut) + delay_seconds + times_G) / 600.0 for cut in every]
    minutes = [time_G[:, None] ** np.arange(1, TIME_POWERS + 1) for time_G in times]
    known_N = np.array([b is not None and p is not None for b, p in zip(bold, power, strict=True)])
    groups_N = np.array([f"{cut.eeg.site}/{cut.eeg.subject}" for cut in every])
    bold_NGR = _filled(bold, known_N)
    found: dict[str, np.ndarray] = {}
    for name, x_NGK in (("band power", _filled(power, known_N)), ("time", np.stack(minutes))):
        expected_NGR = _expected(x_NGK, bold_NGR, groups_N, known_N, len(cuts))
        found[name] = _unit(expected_NGR) @ _unit(bold_NGR[: len(cuts)]).T
    return found


def _expected(
    x_NGK: np.ndarray, y_NGR: np.ndarray, groups_N: np.ndarray, known_N: np.ndarray, n_asked: int
) -> np.ndarray:
    """What is expected of the first ``n_asked`` windows by regressions that never saw their people."""
    expected_NGR = np.zeros_like(y_NGR[:n_asked])
    asked = np.arange(n_asked)
    folds = GroupKFold(min(FOLDS, len(set(groups_N[:n_asked])))).split(asked, groups=groups_N[:n_asked])
    for _, test in folds:
        train = np.flatnonzero(known_N & ~np.isin(groups_N, groups_N[test]))
        scaler = StandardScaler().fit(np.concatenate(x_NGK[train]))
        model = RidgeCV(PENALTIES).fit(scaler.transform(np.concatenate(x_NGK[train])), np.concatenate(y_NGR[train]))
        predicted = model.predict(scaler.transform(np.concatenate(x_NGK[test])))
        expected_NGR[test] = predicted.reshape(len(test), *y_NGR.shape[1:])
    return expected_NGR


def _filled(values: Sequence[np.ndarray | None], known_N: np.ndarray) -> np.ndarray:
    """All in one array, 0 for windows of which nothing is known."""
    shape = next((value.shape for value in values if value is not None), (1, 1))
    return np.stack(
        [v if v is not None and known else np.zeros(shape) for v, known in zip(values, known_N, strict=True)]
    )


def _unit(x_NGR: np.ndarray) -> np.ndarray:
    """Windows as vectors of length 1, each point's course without its mean."""
    x_NF = (x_NGR - x_NGR.mean(axis=1, keepdims=True)).reshape(len(x_NGR), -1)
    return x_NF / np.maximum(np.linalg.norm(x_NF, axis=1, keepdims=True), 1e-12)


def _bold(corpus: Corpus, cut: PairedCut, seconds: float, times_G: np.ndarray) -> np.ndarray | None:
    """Courses at a lattice in the brain at ``times_G`` of the window, ``(G, R)``; None where no position is known."""
    window = corpus.read_window(cut.fmri, cut.fmri_start, window_samples(cut.fmri, seconds))
    x_TR = measured.series(window, measured.common_points("fmri"), standardise=True)
    if x_TR is None or len(x_TR) < 2:
        return None
    valid_T = np.flatnonzero(valid_times(window)) / cut.fmri.sfreq
    return np.stack([np.interp(times_G, valid_T, course_T) for course_T in x_TR.T], axis=1)


def _power(corpus: Corpus, cut: PairedCut, seconds: float, times_G: np.ndarray) -> np.ndarray | None:
    """What the window's band power lets expect at ``times_G`` after its start, ``(G, K)``; None as above.

    Power counts as deviation from its mean over the window, and as 0 outside of it.
    """
    window = corpus.read_window(cut.eeg, cut.eeg_start, window_samples(cut.eeg, seconds))
    length = max(1, round(FRAME_SECONDS * cut.eeg.sfreq))
    starts = range(0, max(1, len(window.x_TC) - length + 1), length)
    frames = [replace(window, x_TC=window.x_TC[a : a + length], start=window.start + a) for a in starts]
    logs = [measured.log_band_power(frame, measured.common_points("eeg")) for frame in frames]
    if any(log is None for log in logs):
        return None
    power_FK = np.stack([log[0] for log in logs if log is not None])
    after_GF = times_G[:, None] - FRAME_SECONDS * (np.arange(len(frames)) + 0.5)
    response_GF = gamma.pdf(after_GF, 6) - gamma.pdf(after_GF, 16) / 6  # as in SPM: peak near 5 s
    expected_GK: np.ndarray = response_GF @ (power_FK - power_FK.mean(axis=0)) * FRAME_SECONDS
    return expected_GK


def run_retrieval(
    models: Mapping[str, MCSP], corpus: Corpus, config: EvaluateConfig
) -> tuple[list[dict[str, Any]], list[str]]:
    """Cross-modal retrieval on held-out and on training subjects, among candidates of all sites, one site, one person.

    For each model, and for :data:`CONTROLS`, of which the first two use the pretrained one. Where a control cannot be
    made (one person alone, recordings of a minute), the numbers it belongs to are left out, with a note.
    """
    pretrained = models[PRETRAINED]
    if set(pretrained.config.modalities) != set(MODALITIES):
        return [], [f"No cross-modal retrieval: the model knows {', '.join(pretrained.config.modalities)} only."]
    assert config.window_seconds is not None
    assert isinstance(pretrained, PretrainedMCSP)
    delay = float(pretrained.preprocessing.get("hemodynamic_delay_seconds", 0.0))
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    known: dict[tuple[str, str, int], Courses] = {}
    cuts_of = {group: find_pairs(corpus, splits, config.window_seconds, delay) for group, splits in GROUPS.items()}
    for group, cuts in cuts_of.items():
        if len(cuts) < 2:
            notes.append(f"No cross-modal retrieval on {group} subjects: {len(cuts)} simultaneous windows found.")
            continue
        compared: dict[str, tuple[Pairs, np.ndarray | None]] = {
            k: (similarities(m, corpus, cuts, config, f"retrieval, {group}, {k}"), None) for k, m in models.items()
        }
        others = [cut for name, of in cuts_of.items() if name != group for cut in of]
        pairs = compared[PRETRAINED][0]
        compared |= {OTHER_PERSON: (pairs, other_people(cuts)), OTHER_MINUTE: (pairs, other_minutes(cuts))}
        if len(set(pairs.subject_N)) > 1:
            ridges = ridge_similarities(corpus, cuts, config.window_seconds, delay, others, known)
            compared |= {RIDGES[k]: (replace(pairs, similarity_NN=x_NN), None) for k, x_NN in ridges.items()}
        found, missing = _scored(compared, group, config)
        simulated = {cut.eeg.site: cut.eeg.simulated for cut in cuts}
        rows += [{**row, "simulated": simulated} for row in found]
        notes += missing
    return rows, notes


def _scored(
    compared: Mapping[str, tuple[Pairs, np.ndarray | None]], group: str, config: EvaluateConfig
) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for scope in get_args(Scope):
        scores = {
            kind: top1(pairs, config.retrieval_size, config.retrieval_draws, scope, query_N)
            for kind, (pairs, query_N) in compared.items()
        }
        missing = [kind for kind in (*compared, *CONTROLS) if scores.get(kind) is None]
        if missing:
            notes.append(f"No retrieval on {group} subjects from {scope}: nothing to make a control of: {missing[0]}.")
            continue
        for kind, score in scores.items():
            rows.append({"subjects_of": group, "candidates_from": scope, "model": kind, **(score or {})})
        fewest = min(score["candidates"] for score in scores.values() if score is not None)
        if scope != "one person" and fewest < config.retrieval_size:
            notes.append(
                f"Retrieval on {group} subjects, {scope}: {config.retrieval_size} candidates were asked for, some "
                f"draws have only {fewest}, all that there are; chance is given for what was drawn."
            )
    return rows, notes
