"""What the studies of real people share: arguments, labels, folds and rulers, scores, differences, the result file."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate import scores
from mcsp.evaluate.measured import measure
from mcsp.evaluate.methods import Halves
from mcsp.evaluate.readout.classifiers import SVM, Readout, cross_validate, on_grams
from mcsp.evaluate.readout.grams import GramOf, fixed, gram
from mcsp.evaluate.splits import Folds, labelled_part, leave_site_out
from mcsp.evaluate.units import Labelled, read_labels
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "scikit-learn")
FEW = {"auroc_twentieth_of_labels": 0.05, "auroc_tenth_of_labels": 0.1}
DRAWS = 5
Part = Callable[[np.ndarray, int], np.ndarray]  # who of a training part has labels in a draw
ROOT_ROW, DENOISER = "root of connectivity", "denoiser"


def arguments_of(
    description: str | None, argv: Sequence[str] | None, more: Mapping[str, dict[str, Any]]
) -> argparse.Namespace:
    """``--corpus``, ``--label`` and ``--out``, which all studies have, and ``more``, each with what argparse wants."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--label", required=True)
    for option, how in more.items():
        parser.add_argument(option, **how)
    parser.add_argument("--out", type=Path, help="the result file")
    return parser.parse_args(argv)


class Scorer:
    """Pooled AUROC, mean over sites, and with few of the labels, of a read-out."""

    def __init__(self, labelled: Labelled, folds: Folds) -> None:
        """Of all units, in ``folds``."""
        self.labelled, self.folds, self.found = labelled, folds, dict[str, dict[str, float]]()
        self.score_of: dict[str, np.ndarray] = {}  # (P, S, N): all labels, then draws of few of them

    def add(self, name: str, readout: Readout) -> None:
        """Score and print."""
        y_N, groups_N = self.labelled.y_N, self.labelled.group_index()

        def few(share: float, draw: int) -> Part:
            return lambda train, seed: labelled_part(train, y_N, groups_N, share, draw)

        parts: list[Part] = [lambda train, seed: train]
        parts += [few(share, draw) for share in FEW.values() for draw in range(DRAWS)]
        score_PSN, once = cross_validate(readout, y_N, self.folds, parts), np.ones((1, len(y_N)))
        within = scores.by_site(score_PSN[0], y_N, self.labelled.sites, once)
        self.found[name] = {
            "auroc": float(scores.pooled(score_PSN[0], y_N, once)[0]),
            "auroc_sites": float(np.mean([value_R[0] for value_R in within.values()])),
        }
        self.score_of[name] = score_PSN
        draws = [scores.pooled(score_SN, y_N, once)[0] for score_SN in score_PSN[1:]]
        self.found[name] |= {key: float(np.mean(draws[i * DRAWS :][:DRAWS])) for i, key in enumerate(FEW)}
        print(f"{name:<60}", {k: round(v, 3) for k, v in self.found[name].items()}, flush=True)

    def given_away(self, lengths_of: Callable[[np.ndarray], np.ndarray]) -> tuple[float, int]:
        """AUROC of telling a random half of the people from the rest by the lengths ``(N,)`` of features that were
        fitted on that half (rows), and how many units it has.
        """
        subject_N = np.asarray(self.labelled.subjects)
        every = np.unique(subject_N)
        member_N = np.isin(subject_N, np.random.default_rng(0).permutation(every)[: len(every) // 2])
        length_N = lengths_of(np.flatnonzero(member_N))
        return float(roc_auc_score(member_N, length_N)), int(member_N.sum())

    def add_blocks(self, name: str, blocks: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> None:
        """A weighted sum of Gram matrices with the evaluation's SVM."""
        self.add(name, on_grams(SVM, fixed([gram(x_NF) for x_NF in blocks], weights)))

    def differences(self, name: str, others: Sequence[str]) -> dict[str, Any]:
        """A row minus others, with intervals over people, for all labels and for few."""
        y_N = self.labelled.y_N
        weight_RN = scores.subject_weights(self.labelled.group_index())
        parts = {"auroc": slice(0, 1)} | {k: slice(1 + i * DRAWS, 1 + (i + 1) * DRAWS) for i, k in enumerate(FEW)}
        found: dict[str, Any] = {}
        for other in others:
            a_PSN, b_PSN = self.score_of[name], self.score_of[other]
            found[other] = {
                key: scores.difference(
                    a_PSN[part].reshape(-1, len(y_N)),
                    b_PSN[part].reshape(-1, len(y_N)),
                    lambda score_SN: scores.pooled(score_SN, y_N, weight_RN),
                )
                for key, part in parts.items()
            }
        return found


@dataclass(frozen=True)
class Bold:
    """Labelled people with BOLD at common parcels, sites left out in turn, and the rulers of their connectivity."""

    corpus: Corpus
    labelled: Labelled
    scorer: Scorer

    @classmethod
    def of(cls, corpus_dir: Path, label: str) -> "Bold":
        """The people of a corpus who have ``label``."""
        corpus = Corpus(corpus_dir)
        labelled = read_labels(corpus, label, None, None)
        keys = [unit.key for unit in labelled.units]
        return cls(
            corpus, labelled, Scorer(labelled, leave_site_out(keys, labelled.y_N, labelled.subjects, labelled.sites))
        )

    @cached_property
    def root(self) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The root of connectivity ``(N, F)`` of whole recordings and of their halves."""
        ruler = measure(self.corpus, self.labelled.units)["fmri"]
        assert ruler.halves is not None
        return ruler.features["root"], ruler.halves

    @cached_property
    def halves(self) -> Halves:
        """The same, for the denoiser."""
        return Halves(*self.root, self.labelled.sites)

    @cached_property
    def everyone(self) -> np.ndarray:
        """All units."""
        return np.arange(len(self.labelled.units))

    @cached_property
    def denoised(self) -> GramOf:
        """What the denoiser of each training part gives."""
        return self.halves.gram_of(self.everyone)

    def add_rulers(self) -> None:
        """The rows of the root of connectivity and of the denoiser."""
        self.scorer.add_blocks(ROOT_ROW, [self.halves.x_NF])
        self.scorer.add(DENOISER, on_grams(SVM, self.denoised))


def write(scorer: Scorer, label: str, kind: str, out: Path | None, **content: Any) -> int:
    """The rows and more ``content``, into benchmarks/results/<kind>_<people>.json or ``out``."""
    people = len(set(scorer.labelled.subjects))
    every = {
        **made_by(PACKAGES), "people": people, "label": label, "splits_sha256": scorer.folds.sha256,
        "rows": scorer.found, **content,
    }  # fmt: skip
    path = out or ROOT / "benchmarks" / "results" / f"{kind.format(people=people)}.json"
    path.write_text(json.dumps(every, indent=1) + "\n")
    print(f"results: {path}")
    return 0
