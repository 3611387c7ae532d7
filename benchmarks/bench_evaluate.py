"""Seconds of the read-out beside a bare scikit-learn script: the same methods, folds and scores, in one run.

python benchmarks/bench_evaluate.py [--people 500] [--sites 11] [--parcels 200] [--repeats 9] [--out FILE]

People are simulated: correlations of random time courses with a factor of the label and of the site, so that no data
are needed and everyone gets the same. The bare script makes one linear kernel per feature set, centres and scales it in
the training part, and fits scikit-learn's SVC and LogisticRegression (on the kernel's eigenvectors) for every site left
out. Both give the pooled AUROC and the mean over sites; the evaluation gives intervals beside, which are timed apart.
Writes benchmarks/results/evaluate_<hardware>_<yyyymm>.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from mcsp.evaluate import scores
from mcsp.evaluate.measured import connectivity, root_connectivity
from mcsp.evaluate.readout.classifiers import LOGISTIC, LOGISTIC_C, SVM, SVM_C, cross_validate, on_grams
from mcsp.evaluate.readout.grams import fixed, gram
from mcsp.evaluate.readout.task import BINARY
from mcsp.evaluate.splits import Folds, leave_site_out
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "scipy", "scikit-learn", "joblib", "threadpoolctl")
Score = tuple[float, float]  # pooled AUROC, mean over sites


def simulate(
    people: int, sites: int, parcels: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Features of people ``(N, F)`` by name, labels, sites."""
    rng = np.random.default_rng(seed)
    y_N, site_N = rng.permutation(np.arange(people) % 2), np.sort(np.arange(people) % sites)
    of_label, of_site = rng.normal(size=parcels), rng.normal(size=(sites, parcels))
    found: dict[str, list[np.ndarray]] = {"connectivity": [], "root": []}
    for y, site in zip(y_N, site_N, strict=True):
        course_T2 = rng.normal(size=(180, 2))
        x_TC = rng.normal(size=(180, parcels)) + 0.5 * course_T2[:, :1] * of_site[site]
        x_TC += 0.07 * y * course_T2[:, 1:] * of_label
        found["connectivity"].append(connectivity(x_TC))
        found["root"].append(root_connectivity(x_TC))
    return {name: np.stack(rows) for name, rows in found.items()}, y_N, [f"site-{s:02d}" for s in site_N]


def bare(x_NF: np.ndarray, y_N: np.ndarray, sites: Sequence[str]) -> dict[str, Score]:
    """Scores by classifier, as one writes it down with scikit-learn."""
    site_N = np.asarray(sites)
    kernel_NN = x_NF @ x_NF.T
    decision = {"linear SVM": np.zeros(len(y_N)), "logistic": np.zeros(len(y_N))}
    for site in np.unique(site_N):
        train, test = np.flatnonzero(site_N != site), np.flatnonzero(site_N == site)
        mean_N = kernel_NN[train].mean(axis=0)
        k = kernel_NN - mean_N - mean_N[:, None] + mean_N[train].mean()
        k /= np.diagonal(k)[train].mean()
        own, other = k[np.ix_(train, train)], k[np.ix_(test, train)]
        svm = SVC(C=SVM_C, kernel="precomputed").fit(own, y_N[train])
        decision["linear SVM"][test] = svm.decision_function(other)
        value, vector = np.linalg.eigh(own)
        kept = value > 1e-10 * value[-1]
        to_coordinates = vector[:, kept] / np.sqrt(value[kept])
        logistic = LogisticRegression(C=LOGISTIC_C, max_iter=2000).fit(own @ to_coordinates, y_N[train])
        decision["logistic"][test] = logistic.decision_function(other @ to_coordinates)
    return {name: _scored(score_N, y_N, site_N) for name, score_N in decision.items()}


def _scored(score_N: np.ndarray, y_N: np.ndarray, site_N: np.ndarray) -> Score:
    within = [roc_auc_score(y_N[site_N == s], score_N[site_N == s]) for s in np.unique(site_N)]
    return float(roc_auc_score(y_N, score_N)), float(np.mean(within))


def ours(x_NF: np.ndarray, y_N: np.ndarray, folds: Folds) -> dict[str, np.ndarray]:
    """Decision values by classifier."""
    gram_NN = gram(x_NF)
    return {c.name: cross_validate(on_grams(c, fixed([gram_NN])), y_N, folds)[0] for c in (SVM, LOGISTIC)}


def intervals(scored: dict[str, np.ndarray], y_N: np.ndarray, sites: Sequence[str]) -> None:
    """Everything that the evaluation says of decision values, with intervals over people."""
    weight_RN, unseen_N = scores.subject_weights(np.arange(len(y_N))), np.ones(len(y_N))
    for score_1N in scored.values():
        BINARY.all_scores(score_1N, y_N, sites, weight_RN, unseen_N, False)


def seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Of each repeat; the runs take turns, so that what else the machine does hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Time, compare the scores, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=500)
    parser.add_argument("--sites", type=int, default=11)
    parser.add_argument("--parcels", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    features, y_N, sites = simulate(arguments.people, arguments.sites, arguments.parcels)
    keys = [f"{i:05d}" for i in range(len(y_N))]
    folds, once = leave_site_out(keys, y_N, keys, sites), np.ones((1, len(y_N)))
    rows = []
    for name, x_NF in features.items():
        theirs, mine = bare(x_NF, y_N, sites), ours(x_NF, y_N, folds)
        for kind, score_1N in mine.items():
            own = float(scores.pooled(score_1N, y_N, once)[0])
            assert abs(own - theirs[kind][0]) < 2e-3, (name, kind, own, theirs[kind])
        runs = {
            "bare_seconds": lambda x=x_NF: bare(x, y_N, sites),
            "evaluation_seconds": lambda x=x_NF: ours(x, y_N, folds),
            "intervals_seconds": lambda m=mine: intervals(m, y_N, sites),
        }
        row = {
            "features": name, "n_features": x_NF.shape[1], "auroc": {kind: score[0] for kind, score in theirs.items()},
            **seconds(runs, arguments.repeats),
        }  # fmt: skip
        row["ratio_of_medians"] = float(np.median(row["evaluation_seconds"]) / np.median(row["bare_seconds"]))
        rows.append(row)
        print({k: v if isinstance(v, (str, int, float, dict)) else np.round(v, 2).tolist() for k, v in row.items()})
    settings = {k: getattr(arguments, k) for k in ("people", "sites", "parcels", "repeats")}
    out = arguments.out or ROOT / "benchmarks" / "results" / f"evaluate_cpu_{date.today():%Y%m}.json"
    out.write_text(json.dumps({**made_by(PACKAGES), "settings": settings, "rows": rows}, indent=1) + "\n")
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
