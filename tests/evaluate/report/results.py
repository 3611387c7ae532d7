"""Results of an evaluation, of the form that evaluate writes, with little in them."""

from typing import Any

from mcsp.evaluate.methods import CLASSICAL


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}


def evaluation(text: str) -> dict[str, Any]:
    """Results of an evaluation as evaluate writes them, with ``text`` for every name that a file or a user gives."""
    sites = [f"{text}{k}" for k in range(2)]
    names = ("pretrained", "untrained", CLASSICAL["eeg"], text)
    common = {
        "recordings": "eeg", "protocol": "kfold", "transductive": False, "subjects": 8, "auroc": estimate(0.7),
        "auroc_sites": estimate(0.6), "auroc_centred": estimate(0.6), "auroc_unseen": None, "brier": None,
        "calibration_error": None, **dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity"), 0.5),
        "per_site": {site: estimate(0.5) for site in sites}, "roc": [0, 0.5, 1], "roc_low": [0, 0.4, 1],
        "roc_high": [0, 0.6, 1],
    }  # fmt: skip
    rows = [{**common, "features": name, "classifier": "linear SVM"} for name in names]
    rows[0]["permuted"] = {"mean": 0.5, "sd": 0.1, "draws": 20, "p": 0.5}
    for row in rows[1:]:
        row["pretrained_minus_this"] = {"auroc": estimate(0.0)}
    points = {"recordings": text, "features": text, "auroc": 0.6, "sd": 0.1}
    retrieval = {"subjects_of": text, "candidates_from": text, "model": text, "simulated": dict.fromkeys(sites, True)}
    numbers = ("top1", "sd", "chance", "top1_subject", "chance_subject")
    return {
        "versions": {text: text}, "config": {"folds": 2, "seeds": 1}, "corpus_index_hash": "0" * 12,
        "label": {"name": text, "classes": [f"{text}a", f"{text}b"], "units": [4, 4]}, "subjects": 8,
        "model": {"parameters": 1000, "config": {"size": "nano"}}, "subjects_seen_in_pretraining": None,
        "sites": {site: {"simulated": k == 0, "units": 4} for k, site in enumerate(sites)}, "overlap": text,
        "classification": rows, "site_decoding": [], "notes": [text],
        "label_efficiency": [{**points, "training_units": n} for n in (2.0, 4.0)],
        "retrieval": [{**retrieval, **dict.fromkeys(numbers, 0.5), "candidates": 4, "windows": 8}],
    }  # fmt: skip
