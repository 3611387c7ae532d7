"""From labelled units to a classifier in one folder: calibration, threshold, distances of new subjects, card.

Everything that says how good a head is comes from units that it was not trained on, fold by fold.

Shape letters: N units, F features, O outputs (classes).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from mcsp.config import LabelledConfig
from mcsp.encode.deployed import CLASSIFICATION, REGRESSION, Head, distance_from, skill_in_words, write_classifier
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.evaluate import scores
from mcsp.evaluate.readout.classifiers import (
    LOGISTIC,
    RIDGE,
    LinearProbe,
    cross_validate,
    linear_weights,
    on_grams,
    with_mean,
)
from mcsp.evaluate.readout.grams import fixed, gram
from mcsp.evaluate.splits import Folds, k_fold
from mcsp.evaluate.units import Labelled
from mcsp.model.weights import ExportedMCSP
from mcsp.schema import Modality
from mcsp.wording import listed, markdown

FOLDER = "classifier"  # in the folder of the results
PERCENTILES = np.arange(0, 101, 5)
COVERAGE = 0.9  # of the interval around a predicted number; ours
# How the measures that a head is judged by are called, and what a head scores that knows nothing.
MEASURES, CHANCE = {"auroc": "AUROC", "r": "r"}, {"auroc": 0.5, "r": 0.0}
SHARED = 0.9  # of the recordings of a site have a good channel that counts as one of the site's; ours


def deploy_probe(
    config: Any,
    model: ExportedMCSP,
    labelled: Labelled,
    parts: dict[Modality, dict[str, np.ndarray]],
    facts: dict[str, Any],
) -> list[str]:
    """Write the logistic probe, or ridge, on frozen features, fitted on all units, into ``config.out_dir``.

    Args:
        config: an EvaluateConfig, with ``window_seconds``.
        model: the encoder.
        labelled: the units.
        parts: blocks of features by modality and name, ``(N, F)``, NaN rows where a unit lacks the modality.
        facts: more of what is worth keeping.

    Returns:
        Notes on what could not be made.
    """
    heads, notes = {}, []
    for modality, named in parts.items():
        x_NF = np.hstack([named[name] for name in model.feature_widths(modality)])
        rows = np.flatnonzero(np.isfinite(x_NF).all(axis=1))
        mine = labelled.part(rows)
        try:
            folds = k_fold([u.key for u in mine.units], mine.y_N, mine.groups, config.folds, 1)
        except ValueError as error:
            notes.append(f"No classifier of {modality}: {error}.")
            continue
        blocks = [named[name][rows] for name in model.feature_widths(modality)]
        weight_OF, bias_O, score_NO = _probe(blocks, mine, folds)
        zero_F, one_F = np.zeros(x_NF.shape[1]), np.ones(x_NF.shape[1])
        arrays = {"weight_OF": weight_OF, "bias_O": bias_O, "mean_F": zero_F, "scale_F": one_F}
        heads[modality] = head_of(config, modality, arrays, x_NF[rows], score_NO, mine, folds.by_seed[0], "recording")
    if heads:
        probe = "a ridge" if labelled.task.kind == "number" else "a logistic probe"
        write_folder(config, model, labelled, heads, facts, f"{probe} on frozen features")
    return notes


def head_of(
    config: LabelledConfig,
    modality: Modality,
    arrays: dict[str, np.ndarray],
    x_NF: np.ndarray,
    score_NO: np.ndarray,
    labelled: Labelled,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    measured_of: str,
) -> Head:
    """A head with what is known of it from held-out units.

    Args:
        config: how windows were cut.
        modality: of the features.
        arrays: ``weight_OF``, ``bias_O``, ``mean_F``, ``scale_F``.
        x_NF: features of the units.
        score_NO: scores of each by a head of a fold that did not train on its subject; NaN where no fold tested it.
        labelled: the same units.
        folds: train and test rows of the same units.
        measured_of: "recording" or "windows": what the measured part of the features is of.
    """
    tested = np.flatnonzero(np.isfinite(score_NO).all(axis=1))
    distances = []
    for train, test in folds:
        known = spread_of(x_NF[train])
        distances += [distance_from(known, x_F) for x_F in x_NF[test]]
    assert config.window_seconds is not None
    facts = {
        "windows_per_recording": config.windows_per_recording,
        "window_seconds": config.window_seconds[modality],
        "measured_of": measured_of,
        **_held_out(score_NO[tested], labelled.part(tested)),
        "units": len(labelled.units),
        "subjects": len(set(labelled.subjects)),
        "sites": dict(sorted(Counter(labelled.sites).items())),
        "simulated": [site for site in sorted(set(labelled.sites)) if labelled.simulated[site]],
        "channels": _channels_by_site(labelled, modality),
        "distances": np.percentile(distances, PERCENTILES).tolist(),
    }
    return Head({**arrays, **spread_of(x_NF)}, facts)


def _held_out(score_NO: np.ndarray, labelled: Labelled) -> dict[str, Any]:
    """What the scores of held-out units say: calibration, how good they are, and threshold, or range and interval."""
    task, y_N = labelled.task, labelled.y_N
    found: dict[str, Any]
    if task.kind == "number":
        calibration, error_N = calibrate_number(score_NO[:, 0], y_N)
        measured = with_mean(score_NO[:, 0], y_N)
        found = {"interval": interval_of(error_N), "range": [float(y_N.min()), float(y_N.max())]}
    else:
        calibration = calibrate(score_NO, y_N)
        p_NO = softmax(calibration["slope"] * score_NO + np.asarray(calibration["bias"]), axis=1)
        measured = score_NO[:, 1] - score_NO[:, 0] if task.kind == "binary" else p_NO
        found = {"threshold": best_threshold(p_NO[:, 1], y_N) if task.kind == "binary" else None}
    name, measure = task.within
    value_R = measure(measured[None], y_N, scores.subject_weights(labelled.group_index()))
    skill = {"measure": MEASURES[name], "chance": CHANCE[name], "estimate": scores.estimate(value_R)}
    return {"calibration": {**calibration, "units": len(y_N)}, "skill": skill, **found}


def write_folder(
    config: Any, model: ExportedMCSP, labelled: Labelled, heads: dict[Modality, Head], facts: dict[str, Any], what: str
) -> Path:
    """Write encoder, heads and card; the folder."""
    folder = Path(config.out_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    kind = REGRESSION if labelled.task.kind == "number" else CLASSIFICATION
    task = {"kind": kind, "label": config.label, "classes": labelled.classes}
    write_classifier(folder, model, heads, task, facts, _card(config.label, labelled, heads, facts, what))
    return folder


def heads_of(classifier: MCSPClassifier) -> dict[Modality, dict[str, np.ndarray]]:
    """The linear heads of a trained classifier, as arrays of a :class:`mcsp.encode.deployed.Head`."""
    found: dict[Modality, dict[str, np.ndarray]] = {}
    for modality in classifier.n_features:
        tensors = {
            "weight_OF": classifier.get_parameter(f"heads.{modality}.weight"),
            "bias_O": classifier.get_parameter(f"heads.{modality}.bias"),
            "mean_F": classifier.get_buffer(f"{modality}_mean"),
            "scale_F": classifier.get_buffer(f"{modality}_scale"),
        }
        found[modality] = {name: t.detach().double().cpu().numpy() for name, t in tensors.items()}
    return found


def calibrate(score_NO: np.ndarray, y_N: np.ndarray) -> dict[str, Any]:
    """Slope and bias that make logarithms of probabilities of scores, after Platt (1999), for any number of classes.

    Labels are smoothed as he does it, so that scores which hold the classes wholly apart give no infinite slope.

    Args:
        score_NO: scores of units that the classifier was not trained on.
        y_N: their classes, 0 to O - 1.

    Returns:
        ``slope`` and a ``bias`` per class: ``softmax(slope * score + bias)`` are the probabilities.
    """
    n_units, n_classes = score_NO.shape
    count_O = np.bincount(y_N, minlength=n_classes)
    sure_O = (count_O + 1) / (count_O + n_classes)
    target_NO = np.repeat(((1 - sure_O[y_N]) / (n_classes - 1))[:, None], n_classes, axis=1)
    target_NO[np.arange(n_units), y_N] = sure_O[y_N]
    scale = float(score_NO.std()) or 1.0
    x_NO = score_NO / scale

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logit_NO = parameters[0] * x_NO + parameters[1:]
        error_NO = (softmax(logit_NO, axis=1) - target_NO) / n_units
        gradient = np.concatenate([[float((error_NO * x_NO).sum())], error_NO.sum(axis=0)])
        return float(-(target_NO * log_softmax(logit_NO, axis=1)).sum() / n_units), gradient

    # A slope below 0 would turn the ranking around, where the scores say nothing.
    bounds = [(0.0, None), *[(None, None)] * n_classes]
    found = minimize(loss, np.concatenate([[1.0], np.zeros(n_classes)]), jac=True, method="L-BFGS-B", bounds=bounds)
    bias_O = found.x[1:] - found.x[1:].mean()
    return {"slope": float(found.x[0]) / scale, "bias": bias_O.tolist()}


def calibrate_number(score_N: np.ndarray, y_N: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Slope and bias of the line of least squares from predictions of held-out units to their numbers, and errors.

    A slope below 0 is 0: predictions that say nothing come to the mean. The error ``(N,)`` of each unit is from the
    line through all others.
    """
    from_mean_N = score_N - score_N.mean()
    squares = float(from_mean_N @ from_mean_N)
    slope = max(0.0, float(from_mean_N @ y_N) / squares) if squares else 0.0
    bias = float(y_N.mean() - slope * score_N.mean())
    leverage_N = 1 / len(y_N) + (from_mean_N**2 / squares if slope else 0.0)
    error_N = (y_N - slope * score_N - bias) / np.maximum(1 - leverage_N, 1e-9)
    return {"slope": slope, "bias": [bias]}, error_N


def interval_of(error_N: np.ndarray) -> dict[str, float]:
    """Half the width of an interval around a prediction that holds a new unit's number in COVERAGE of cases.

    The quantile of absolute errors of held-out units with the finite-sample correction of split conformal prediction
    (Lei et al. 2018); the largest error where there are fewer than nine units.
    """
    rank = min(int(np.ceil((len(error_N) + 1) * COVERAGE)), len(error_N))
    return {"coverage": COVERAGE, "half_width": float(np.sort(np.abs(error_N))[rank - 1])}


def best_threshold(p_N: np.ndarray, y_N: np.ndarray) -> float:
    """The probability of the second class from which on it is named, with the largest balanced accuracy.

    Of several, the one next to the middle of its gap between two units, and of those the one next to 0.5.
    """
    levels = np.unique(p_N)
    cuts = np.concatenate([[levels[0] / 2], (levels[1:] + levels[:-1]) / 2, [(levels[-1] + 1) / 2]])
    accuracy = [((p_N[y_N == 1] >= t).mean() + (p_N[y_N == 0] < t).mean()) / 2 for t in cuts]
    best = cuts[np.isclose(accuracy, max(accuracy))]
    return float(best[np.abs(best - 0.5).argmin()])


def spread_of(x_NF: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every feature over units; 0 where it does not vary beyond rounding."""
    centre_F, spread_F = x_NF.mean(axis=0), x_NF.std(axis=0)
    return {"centre_F": centre_F, "spread_F": np.where(spread_F > 1e-9 * np.abs(centre_F).clip(1e-9), spread_F, 0.0)}


def _channels_by_site(labelled: Labelled, modality: Modality) -> dict[str, list[str]]:
    """Channels that nearly all recordings of a site have, and good."""
    found = {}
    for site in sorted(set(labelled.sites)):
        units = [unit for unit, of in zip(labelled.units, labelled.sites, strict=True) if of == site]
        recordings = [r for unit in units for r in unit.of(modality)]
        counts = Counter(n for r in recordings for n, good in zip(r.channels, r.channel_good, strict=True) if good)
        found[site] = [name for name, count in counts.items() if count >= SHARED * len(recordings)]
    return found


def _probe(blocks: Sequence[np.ndarray], labelled: Labelled, folds: Folds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights ``(O, F)``, bias ``(O,)`` fitted on all units, and scores ``(N, O)`` of held-out ones.

    One logistic regression per class against the others; of two classes, one for both, halved; of a number one ridge.
    """
    kind, y_N, grams = labelled.task.kind, labelled.y_N, fixed([gram(x_NF) for x_NF in blocks])
    if kind == "number":
        predicted_N2 = cross_validate(on_grams(RIDGE, grams, labelled.task), y_N, folds)[0, 0]
        weight_F, bias = linear_weights(blocks, y_N, RIDGE)
        return weight_F[None], np.array([bias]), predicted_N2[:, :1]
    probe = LinearProbe([x_NF.shape[1] for x_NF in blocks]).fit(np.hstack(blocks), y_N)
    positive = [1] if kind == "binary" else range(len(labelled.classes))
    readout = on_grams(LOGISTIC, grams)
    score_NO = np.stack([cross_validate(readout, (y_N == c).astype(int), folds)[0, 0] for c in positive], axis=1)
    if kind == "binary":
        sign_O = np.array([-0.5, 0.5])
        return sign_O[:, None] * probe.coef_, sign_O * probe.intercept_, sign_O * score_NO
    return probe.coef_, probe.intercept_, score_NO


def _card(label: str, labelled: Labelled, heads: dict[Modality, Head], facts: dict[str, Any], what: str) -> str:
    number = not labelled.classes
    says = "a number" if number else markdown(" or ".join(labelled.classes))
    lines = [
        f"# {markdown(label)}: {says}",
        "",
        f"A predictor from single recordings, {what}. Research use; not a medical device.",
        "",
        "```sh",
        "mcsp predict THIS_FOLDER RECORDINGS... --out table.tsv",
        "```",
        "",
        f"| modality | units | subjects | sites | held-out units | {'interval' if number else 'threshold'} |",
        "|---|---|---|---|---|---|",
    ]
    for modality, head in heads.items():
        f = head.facts
        kinds = {name: ", simulated" for name in f["simulated"]}
        sites = listed(f"{markdown(name)} ({count}{kinds.get(name, '')})" for name, count in f["sites"].items())
        rule = "largest probability"
        if number:
            rule = f"{f['interval']['coverage']:.0%} within {f['interval']['half_width']:.3g}"
        elif f["threshold"] is not None:
            rule = f"{markdown(labelled.classes[1])} from {f['threshold']:.3f}"
        shown = f"{modality} | {f['units']} | {f['subjects']} | {sites} | {skill_in_words(f['skill'])}"
        lines.append(f"| {shown} | {rule} |")
    given = "Probabilities are calibrated on held-out subjects of these sites, for the share of each class there"
    if number:
        given = "Numbers are calibrated, and their intervals are errors, of held-out subjects of these sites"
    return "\n".join(
        [
            *lines,
            "",
            f"{given};",
            "elsewhere they may be off, and further away than all held-out subjects there are none.",
            "`distance` says how far a recording lies from the training data, and `flags` which channels it lacks.",
            "",
            markdown(str(facts.get("overlap", ""))),
            "",
        ]
    )
