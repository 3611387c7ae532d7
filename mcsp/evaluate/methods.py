"""The compared methods: features of units, and rows of the table.

Rulers are classical features that need no weights; an encoder has to beat them. All rows are linear, in the same folds.

Shape letters: N units, F features, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from mcsp.evaluate.measured import Measured
from mcsp.evaluate.readout import grams
from mcsp.evaluate.readout.classifiers import LOGISTIC, RIDGE, SVM, Classifier, Readout, discriminant, on_grams
from mcsp.evaluate.readout.task import BINARY, Task
from mcsp.schema import MODALITIES, Modality

PRETRAINED, UNTRAINED = "pretrained", "untrained"
PRETRAINED_LEARNED, UNTRAINED_LEARNED = "pretrained, learned part", "untrained, learned part"
CONNECTIVITY, ROOT, DENOISED = "connectivity", "root of connectivity", "root of connectivity, denoised"
TANGENT, COVARIATES = "tangent space", "covariates"
BAND_POWER, RELATIVE_POWER = "band power", "relative band power"
ROOT_AND_POWER = "root of connectivity + relative band power"
SHUFFLED = "root of connectivity, denoised, pairs shuffled"  # within sites: what a person's own two halves are worth
# The ruler of each kind of recordings that the others are compared with, and that site corrections are shown for.
CLASSICAL: dict[str, str] = {"eeg": RELATIVE_POWER, "fmri": ROOT, "both": ROOT_AND_POWER}
MAIN = SVM  # the classifier that every feature set has; of a number it is the ridge

# How blocks are weighed. Chosen on development people (522 of ABIDE, 12 of eegmat), whose scores flatter the choice;
# benchmarks/people/read_out_ablation.py has the comparison.
# The learned parts that are used, where the model has them, else all. What the others say of people is little (the
# course in time, spectra of BOLD), and z is made to forget; equal weights would drown the spatial domain in them.
LEARNED: tuple[str, ...] = ("spatial",)
# The share of the learned part, from 0, 0.05, 0.1, 0.25 and 0.5; the rest is measured. Of BOLD all but 0 cost.
LEARNED_SHARE: dict[Modality, float] = {"eeg": 0.5, "fmri": 0.0}
# The measured parts that the rest is made of, where the model has them, else all that it has. Beside the root, band
# power of BOLD dilutes what little it says of people, and so do EEG's coherence and absolute power. Where all
# recordings have the same parcels, the root goes through the denoiser: it helps where few are labelled, and costs
# nothing where all are.
MEASURED: dict[Modality, tuple[str, ...]] = {"eeg": ("root", "relative_power"), "fmri": ("root",)}

_FOLDS_REMEMBERED = 30  # of N x N numbers each


class Block:
    """One block of features of all units, and its Gram matrix, made when it is first asked for."""

    def __init__(self, x_NF: np.ndarray) -> None:
        """``(N, F)``, NaN rows where missing."""
        self.x_NF = x_NF
        self.finite_N: np.ndarray = np.isfinite(x_NF).all(axis=1)

    @cached_property
    def gram_NN(self) -> np.ndarray:
        """Inner products of all units that have the features; 0 for the others."""
        gram_NN = np.zeros((len(self.x_NF), len(self.x_NF)))
        rows = np.flatnonzero(self.finite_N)
        if len(rows):
            gram_NN[np.ix_(rows, rows)] = grams.gram(self.x_NF[rows])
        return gram_NN


class Halves(Block):
    """A block that is read through a denoiser, which every training part fits on halves of its recordings.

    Where it is taken as a plain block, it is that of whole recordings.
    """

    def __init__(self, whole_NF: np.ndarray, halves: tuple[np.ndarray, np.ndarray], sites: Sequence[str]) -> None:
        """``(N, F)`` of whole recordings and of their halves."""
        super().__init__(whole_NF)
        self.stacked, self.sites = Block(np.concatenate([whole_NF, *halves])), sites
        self.finite_N = np.all(self.stacked.finite_N.reshape(3, -1), axis=0)
        self._made: dict[tuple[bytes, bool], grams.GramOf] = {}

    def gram_of(self, rows: np.ndarray, shuffled: bool = False) -> grams.GramOf:
        """For units ``rows``; ``shuffled`` is the control of :func:`mcsp.evaluate.readout.grams.denoised`."""
        key = (rows.tobytes(), shuffled)
        if key not in self._made:
            n_units = len(self.x_NF)
            of_rows = np.concatenate([rows, n_units + rows, 2 * n_units + rows])
            gram_3N3N = self.stacked.gram_NN[np.ix_(of_rows, of_rows)]
            self._made[key] = _remembered(grams.denoised(gram_3N3N, [self.sites[i] for i in rows], shuffled))
        return self._made[key]


def _remembered(gram_of: grams.GramOf) -> grams.GramOf:
    """The same, made once for the folds of one protocol: several rows and all permutations share it."""
    made = lru_cache(maxsize=_FOLDS_REMEMBERED)(lambda train: gram_of(np.frombuffer(train, dtype=np.int64)))
    return lambda train: made(train.astype(np.int64).tobytes())


@dataclass(frozen=True)
class Encoded:
    """What an encoder says of all units: blocks by modality and name."""

    learned: Mapping[Modality, Mapping[str, Block]]
    measured: Mapping[Modality, Mapping[str, Block]]
    windows: Mapping[Modality, np.ndarray] = field(default_factory=dict)  # how many the learned part is the mean of


def learned_blocks(encoded: Encoded, modality: Modality) -> list[Block]:
    """The learned part that the read-out uses."""
    of = encoded.learned[modality]
    return [block for name, block in of.items() if name in LEARNED] or list(of.values())


def _weighed(encoded: Encoded, modality: Modality, halves: Halves | None) -> list[tuple[Block, float]]:
    """The blocks of one modality with their weights, which sum to 1; the root through ``halves``, if any."""
    learned, every = learned_blocks(encoded, modality), encoded.measured.get(modality, {})
    every = {**every, "root": halves} if "root" in every and halves is not None else every
    measured = [block for name, block in every.items() if name in MEASURED[modality]] or list(every.values())
    share = LEARNED_SHARE[modality] if measured else 1.0
    pairs = [(block, share / len(learned)) for block in learned if share]
    return pairs + [(block, (1 - share) / len(measured)) for block in measured]


@dataclass(frozen=True)
class Described:
    """All descriptions of the units."""

    encoders: Mapping[str, Encoded]  # PRETRAINED, UNTRAINED and others, by name
    rulers: Mapping[Modality, Measured]
    covariates_NF: np.ndarray
    sites: Sequence[str]

    def blocks(self, recordings: str) -> dict[str, tuple[list[Block], list[float]]]:
        """Every feature set that is a weighted sum of blocks, with their weights."""
        modalities = modalities_of(recordings)
        found: dict[str, tuple[list[Block], list[float]]] = {}
        for name, encoded in self.encoders.items():
            if any(m not in encoded.learned for m in modalities):
                continue
            finer = {m: halves for m, halves in self.halves.items() if self.rulers[m].own}
            weighed = [pair for m in modalities for pair in _weighed(encoded, m, finer.get(m))]
            found[name] = ([block for block, _ in weighed], [weight / len(modalities) for _, weight in weighed])
            learned = [block for m in modalities for block in learned_blocks(encoded, m)]
            found[f"{name}, learned part"] = (learned, [1.0] * len(learned))
        rulers = {name: table for m in modalities for name, table in self._ruler_blocks.get(m, {}).items()}
        if all(m in self.rulers for m in modalities):
            if recordings == "both":
                found[ROOT_AND_POWER] = ([rulers[ROOT], rulers[RELATIVE_POWER]], [0.5, 0.5])
            else:
                found |= {name: ([block], [1.0]) for name, block in rulers.items()}
        return found

    @cached_property
    def halves(self) -> dict[Modality, Halves]:
        """What the denoiser reads, of BOLD."""
        of = {m: (ruler.features["root"], ruler.halves) for m, ruler in self.rulers.items() if ruler.halves is not None}
        return {m: Halves(root_NF, halves, self.sites) for m, (root_NF, halves) in of.items()}

    @cached_property
    def _ruler_blocks(self) -> dict[Modality, dict[str, Block]]:
        names = {"connectivity": CONNECTIVITY, "root": ROOT, "band_power": BAND_POWER, "relative_power": RELATIVE_POWER}
        return {m: {names[k]: Block(x_NF) for k, x_NF in of.features.items()} for m, of in self.rulers.items()}


@dataclass(frozen=True)
class Method:
    """One row of the table: features and what is fitted on them.

    Attributes:
        features: their name.
        classifier: its name.
        readout: for units of given indices, which are all finite.
        finite_N: which units have the features.
        n_features: their number.
        probabilities: whether the logistic function of a score of two classes is meant as a probability.
        transductive: whether unlabelled units of the tested site have a part in the features.
    """

    features: str
    classifier: str
    readout: Callable[[np.ndarray], Readout]
    finite_N: np.ndarray
    n_features: int
    probabilities: bool
    transductive: bool = False

    @property
    def name(self) -> str:
        """For the keys of a block of rows."""
        return f"{self.features}, {self.classifier}"


def modalities_of(recordings: str) -> tuple[Modality, ...]:
    """Of "eeg", "fmri" or "both"."""
    return MODALITIES if recordings == "both" else (recordings,)  # type: ignore[return-value]


def main_of(task: Task) -> Classifier:
    """What is fitted on every feature set."""
    return RIDGE if task.kind == "number" else MAIN


def methods(described: Described, recordings: str, task: Task = BINARY) -> list[Method]:
    """What is compared on ``recordings`` ("eeg", "fmri" or "both"); empty where no unit has them.

    The untrained encoder has the pretrained one's read-out, so their difference is what pretraining learned. Measured
    features that both pass on can hide it, so the learned parts of both stand beside them.
    """
    sets = described.blocks(recordings)
    if not sets:
        return []
    main, second = main_of(task), () if task.kind == "number" else (LOGISTIC,)
    both = [PRETRAINED, UNTRAINED, CONNECTIVITY, ROOT, BAND_POWER, RELATIVE_POWER, ROOT_AND_POWER]
    found: list[Method] = []
    for name, (blocks, weights) in sets.items():
        kinds = (main, *second) if name in both else (main,)
        found += [_on_blocks(name, kind, blocks, weights, task) for kind in kinds]
        if name in (BAND_POWER, RELATIVE_POWER) and task.kind != "number":
            found.append(_discriminant(name, blocks[0], task))
    if recordings != "both" and recordings in described.rulers:
        modality = modalities_of(recordings)[0]
        if modality in described.halves:
            found += [_denoised(described.halves[modality], shuffled, task) for shuffled in (False, True)]
        found.append(_tangent(described.rulers[modality].covariance_NCC, task))
    if described.covariates_NF.shape[1]:
        # Each a block of its own: their units have nothing in common.
        columns = [Block(column_N[:, None]) for column_N in described.covariates_NF.T]
        found.append(_on_blocks(COVARIATES, (main, *second)[-1], columns, [1.0] * len(columns), task))
    return found


def corrected(described: Described, recordings: str, corrections: Sequence[str], task: Task = BINARY) -> list[Method]:
    """The pretrained and the classical features again, without what tells their site; see mcsp.evaluate.readout.

    Without the denoiser: it takes the sites' means out by itself.
    """
    sets, sites, main = described.blocks(recordings), np.asarray(described.sites), main_of(task)
    found: list[Method] = []
    for name in (PRETRAINED, CLASSICAL[recordings]):
        if name not in sets or len(set(described.sites)) < 2:
            continue
        blocks, weights = sets[name]
        common = _facts(blocks)
        if "combat" in corrections:
            tables = [b.x_NF for b in blocks]

            def harmonized(rows: np.ndarray, tables: list[np.ndarray] = tables, weights: list[float] = weights) -> Any:
                of = grams.harmonized([x_NF[rows] for x_NF in tables], sites[rows].tolist(), weights)
                return on_grams(main, of, task)

            found.append(Method(name, f"ComBat + {main.name}", harmonized, *common, main.probabilities))
        if "centred" in corrections:

            def centred(rows: np.ndarray, blocks: list[Block] = blocks, weights: list[float] = weights) -> Any:
                own = [grams.without_site_means(b.gram_NN[np.ix_(rows, rows)], sites[rows].tolist()) for b in blocks]
                return on_grams(main, grams.fixed(own, weights), task)

            found.append(Method(f"{name}, site-centred", main.name, centred, *common, main.probabilities, True))
    return found


def _facts(blocks: Sequence[Block]) -> tuple[np.ndarray, int]:
    """Which units have all blocks, and the number of features."""
    finite_N: np.ndarray = np.all([b.finite_N for b in blocks], axis=0)
    return finite_N, sum(b.x_NF.shape[1] for b in blocks)


def _on_blocks(
    features: str, classifier: Classifier, blocks: Sequence[Block], weights: Sequence[float], task: Task
) -> Method:
    def readout(rows: np.ndarray) -> Readout:
        plain = [(b.gram_NN[np.ix_(rows, rows)], w) for b, w in pairs if not isinstance(b, Halves)]
        parts = [(b.gram_of(rows), w) for b, w in pairs if isinstance(b, Halves)]
        if plain:  # together, which is faster than one by one
            parts.append((grams.fixed([g for g, _ in plain], [w for _, w in plain]), sum(w for _, w in plain)))
        return on_grams(classifier, grams.weighed(parts), task)

    pairs = [(b, w / sum(weights)) for b, w in zip(blocks, weights, strict=True)]
    return Method(features, classifier.name, readout, *_facts(blocks), classifier.probabilities)


def _discriminant(features: str, block: Block, task: Task) -> Method:
    return Method(features, "LDA", lambda rows: discriminant(block.x_NF[rows], task), *_facts([block]), True)


def _denoised(halves: Halves, shuffled: bool, task: Task) -> Method:
    main = main_of(task)

    def readout(rows: np.ndarray) -> Readout:
        return on_grams(main, halves.gram_of(rows, shuffled), task)

    return Method(SHUFFLED if shuffled else DENOISED, main.name, readout, *_facts([halves]), main.probabilities)


def _tangent(x_NCC: np.ndarray, task: Task) -> Method:
    main = main_of(task)
    finite_N: np.ndarray = np.isfinite(x_NCC).all(axis=(1, 2))
    n_features = x_NCC.shape[1] * (x_NCC.shape[1] + 1) // 2

    def readout(rows: np.ndarray) -> Readout:
        return on_grams(main, grams.tangent(x_NCC[rows]), task)

    return Method(TANGENT, main.name, readout, finite_N, n_features, main.probabilities)


def complete_rows(compared: Sequence[Method]) -> np.ndarray:
    """Units that every method can describe, so that all are scored on the same ones."""
    return np.flatnonzero(np.all([m.finite_N for m in compared], axis=0))
