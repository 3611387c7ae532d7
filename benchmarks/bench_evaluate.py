"""Seconds of the read-out beside a bare scikit-learn script: the same methods, folds and scores, in one run.

python benchmarks/bench_evaluate.py [--people 1035] [--sites 24] [--parcels 200] [--repeats 3] [--out FILE]

People are simulated: correlations of random time courses with a factor of the label and of the site, so that no data
are needed and everyone gets the same. The bare script makes one linear kernel per feature set, centres and scales it in
the training part, and fits scikit-learn's SVC and LogisticRegression (on the kernel's eigenvectors) for every site left
out; the denoiser is fitted in each training part, from inner products of halves. Both give the pooled AUROC and the
mean over sites; the evaluation gives intervals beside, which are timed apart. Seconds are wall and processor.
Writes benchmarks/results/evaluate_<hardware>_<yyyymm>.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from mcsp.evaluate import scores
from mcsp.evaluate.measured import connectivity, root_connectivity
from mcsp.evaluate.methods import Halves
from mcsp.evaluate.readout.classifiers import LOGISTIC, LOGISTIC_C, SVM, SVM_C, cross_validate, on_grams
from mcsp.evaluate.readout.grams import GramOf, fixed, gram
from mcsp.evaluate.readout.task import BINARY
from mcsp.evaluate.splits import Folds, leave_site_out
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "scipy", "scikit-learn", "joblib", "threadpoolctl")
Score = tuple[float, float]  # pooled AUROC, mean over sites
KernelOf = Callable[[np.ndarray], np.ndarray]  # of all people, for a training part
HALVES = ("first half", "second half")
DENOISED = "root, denoised"


def simulate(
    people: int, sites: int, parcels: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Features of people ``(N, F)`` by name, labels, sites."""
    rng = np.random.default_rng(seed)
    y_N, site_N = rng.permutation(np.arange(people) % 2), np.sort(np.arange(people) % sites)
    of_label, of_site = rng.normal(size=parcels), rng.normal(size=(sites, parcels))
    found: dict[str, list[np.ndarray]] = {}
    for y, site in zip(y_N, site_N, strict=True):
        course_T2 = rng.normal(size=(180, 2))
        x_TC = rng.normal(size=(180, parcels)) + 0.5 * course_T2[:, :1] * of_site[site]
        x_TC += 0.07 * y * course_T2[:, 1:] * of_label
        found.setdefault("connectivity", []).append(connectivity(x_TC))
        for name, part_TC in zip(("root", *HALVES), (x_TC, *np.array_split(x_TC, 2)), strict=True):
            found.setdefault(name, []).append(root_connectivity(part_TC))
    return {name: np.stack(rows) for name, rows in found.items()}, y_N, [f"site-{s:02d}" for s in site_N]


def bare(kernel_of: KernelOf, y_N: np.ndarray, sites: Sequence[str], logistic: bool) -> dict[str, Score]:
    """Scores by classifier, as one writes it down with scikit-learn."""
    site_N = np.asarray(sites)
    decision = {name: np.zeros(len(y_N)) for name in ("linear SVM", *(["logistic"] if logistic else []))}
    for site in np.unique(site_N):
        train, test = np.flatnonzero(site_N != site), np.flatnonzero(site_N == site)
        kernel_NN = kernel_of(train)
        mean_N = kernel_NN[train].mean(axis=0)
        k = kernel_NN - mean_N - mean_N[:, None] + mean_N[train].mean()
        k /= np.diagonal(k)[train].mean()
        own, other = k[np.ix_(train, train)], k[np.ix_(test, train)]
        svm = SVC(C=SVM_C, kernel="precomputed").fit(own, y_N[train])
        decision["linear SVM"][test] = svm.decision_function(other)
        if logistic:
            value, vector = np.linalg.eigh(own)
            kept = value > 1e-10 * value[-1]
            to_coordinates = vector[:, kept] / np.sqrt(value[kept])
            model = LogisticRegression(C=LOGISTIC_C, max_iter=2000).fit(own @ to_coordinates, y_N[train])
            decision["logistic"][test] = model.decision_function(other @ to_coordinates)
    return {name: _scored(score_N, y_N, site_N) for name, score_N in decision.items()}


def bare_kernel(x_NF: np.ndarray) -> KernelOf:
    """The linear kernel."""
    kernel_NN = x_NF @ x_NF.T
    return lambda train: kernel_NN


def bare_denoised(features: dict[str, np.ndarray], sites: Sequence[str]) -> KernelOf:
    """The kernel of the ridge from one half to the other; every product with halves comes from one matrix."""
    count = len(sites)
    stacked = np.concatenate([features["root"], *(features[name] for name in HALVES)])
    inner = stacked @ stacked.T
    site_N = np.asarray(sites)

    def of(train: np.ndarray) -> np.ndarray:
        rows = np.concatenate([count + train, 2 * count + train])
        group = np.concatenate([np.char.add(site_N[train], half) for half in ("a", "b")])
        out = np.eye(len(rows))  # takes the mean of site and half out
        for name in np.unique(group):
            of_group = np.flatnonzero(group == name)
            out[np.ix_(of_group, of_group)] -= 1 / len(of_group)
        own = out @ inner[np.ix_(rows, rows)] @ out
        whole = (inner[:count, rows] - inner[np.ix_(rows, rows)].mean(axis=0)) @ out
        other = np.roll(np.arange(len(rows)), len(train))
        weight = np.linalg.solve(own + np.trace(own) / len(own) * np.eye(len(own)), whole.T)
        return weight.T @ own[np.ix_(other, other)] @ weight

    return of


def _scored(score_N: np.ndarray, y_N: np.ndarray, site_N: np.ndarray) -> Score:
    within = [roc_auc_score(y_N[site_N == s], score_N[site_N == s]) for s in np.unique(site_N)]
    return float(roc_auc_score(y_N, score_N)), float(np.mean(within))


def ours(gram_of: GramOf, y_N: np.ndarray, folds: Folds, logistic: bool) -> dict[str, np.ndarray]:
    """Decision values by classifier."""
    kinds = (SVM, LOGISTIC) if logistic else (SVM,)
    return {c.name: cross_validate(on_grams(c, gram_of), y_N, folds)[0] for c in kinds}


def intervals(scored: dict[str, np.ndarray], y_N: np.ndarray, sites: Sequence[str]) -> None:
    """Everything that the evaluation says of decision values, with intervals over people."""
    weight_RN, unseen_N = scores.subject_weights(np.arange(len(y_N))), np.ones(len(y_N))
    for score_1N in scored.values():
        BINARY.all_scores(score_1N, y_N, sites, weight_RN, unseen_N, False)


def seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Of each repeat; the runs take turns, so that what else the machine does hits all of them."""
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["processor"].append(time.process_time() - processor)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Time, compare the scores, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=1035)
    parser.add_argument("--sites", type=int, default=24)
    parser.add_argument("--parcels", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    features, y_N, sites = simulate(arguments.people, arguments.sites, arguments.parcels)
    keys = [f"{i:05d}" for i in range(len(y_N))]
    folds, once = leave_site_out(keys, y_N, keys, sites), np.ones((1, len(y_N)))
    rows = []
    everyone = np.arange(len(y_N))
    for name in ("connectivity", "root", DENOISED):
        x_NF, logistic = features[name.split(",")[0]], name != DENOISED

        def of_bare(name: str = name, x_NF: np.ndarray = x_NF, logistic: bool = logistic) -> dict[str, Score]:
            kernel_of = bare_denoised(features, sites) if name == DENOISED else bare_kernel(x_NF)
            return bare(kernel_of, y_N, sites, logistic)

        def of_ours(name: str = name, x_NF: np.ndarray = x_NF, logistic: bool = logistic) -> dict[str, np.ndarray]:
            halves = (features[HALVES[0]], features[HALVES[1]])
            gram_of = Halves(x_NF, halves, sites).gram_of(everyone) if name == DENOISED else fixed([gram(x_NF)])
            return ours(gram_of, y_N, folds, logistic)

        theirs, mine = of_bare(), of_ours()
        for kind, score_1N in mine.items():
            own = float(scores.pooled(score_1N, y_N, once)[0])
            assert abs(own - theirs[kind][0]) < 2e-3, (name, kind, own, theirs[kind])
        runs: dict[str, Callable[[], object]] = {"bare": of_bare, "evaluation": of_ours}
        runs["intervals"] = partial(intervals, mine, y_N, sites)
        taken = seconds(runs, arguments.repeats)
        ratio = {
            clock: float(np.median(taken["evaluation"][clock]) / np.median(taken["bare"][clock]))
            for clock in ("wall", "processor")
        }
        auroc = {kind: score[0] for kind, score in theirs.items()}
        rows.append({"features": name, "auroc": auroc, "seconds": taken, "ratio_of_medians": ratio})
        print(name, auroc, {k: {c: np.round(v, 2).tolist() for c, v in of.items()} for k, of in taken.items()}, ratio)
    settings = {k: getattr(arguments, k) for k in ("people", "sites", "parcels", "repeats")}
    out = arguments.out or ROOT / "benchmarks" / "results" / f"evaluate_cpu_{date.today():%Y%m}.json"
    out.write_text(json.dumps({**made_by(PACKAGES), "settings": settings, "rows": rows}, indent=1) + "\n")
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
