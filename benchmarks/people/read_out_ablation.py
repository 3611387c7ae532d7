"""Scores of the read-out with one change at a time from the root of connectivity, and of each block alone.

python benchmarks/people/read_out_ablation.py --corpus DIR --model DIR --label COLUMN [--out FILE]

No training: the rulers and an export (of random weights, say) on a labelled corpus. BOLD is tested on sites left out,
EEG on folds of people. Changes from the root of connectivity over all valid time at the recordings' own parcels:

(a) mean over windows; (b) the logarithm of the shrunk correlation; (c) every feature standardised, or C chosen in inner
folds; (d) learned and spectral blocks beside it; (e) anchors instead of parcels; (f) the denoiser, its control, and one
of all people at once, which could go with an export, and tells who it was fitted on.

Of EEG also coherence over whole recordings, which differ in length. Writes
benchmarks/results/read_out_<people>_<modality>.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.svm import SVC
from study import Scorer, arguments_of, write

from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import from_pretrained
from mcsp.encode.recording import encode_windows, split_parts
from mcsp.evaluate.evaluate import describe, with_windows
from mcsp.evaluate.features import measured_parts, read_whole, read_windows
from mcsp.evaluate.measured import Points, root_connectivity, series
from mcsp.evaluate.methods import Block, Halves
from mcsp.evaluate.readout.classifiers import SVM, Readout, on_grams
from mcsp.evaluate.readout.grams import combined, fixed, gram, weighed
from mcsp.evaluate.splits import k_fold, leave_site_out
from mcsp.evaluate.units import Labelled, read_labels
from mcsp.model.mcsp import MCSP
from mcsp.model.tangent import log_correlation, upper_triangle

C_GRID = [0.01, 0.1, 1.0, 10.0, 100.0]


def chosen_c(x_NF: np.ndarray, sites: Sequence[str]) -> Readout:
    """The SVM with C from three inner folds of sites."""
    gram_NN, site_N = gram(x_NF), np.asarray(sites)

    def fitted(train: np.ndarray) -> Any:
        """A penalty chosen within the training part."""
        k = combined([gram_NN], train)

        def score(test: np.ndarray, labelled: np.ndarray, y_N: np.ndarray) -> np.ndarray:
            folds = GroupKFold(min(3, len(set(site_N[labelled])))).split(labelled, groups=site_N[labelled])
            search = GridSearchCV(SVC(kernel="precomputed"), {"C": C_GRID}, scoring="roc_auc", cv=list(folds))
            model = search.fit(k[np.ix_(labelled, labelled)], y_N[labelled])
            score_N: np.ndarray = model.decision_function(k[np.ix_(test, labelled)])
            return score_N

        return score

    return fitted


def standardised(x_NF: np.ndarray) -> np.ndarray:
    """Every feature of unit variance over all units, which needs no label."""
    return (x_NF - x_NF.mean(axis=0)) / (x_NF.std(axis=0) + 1e-12)


def bold_changes(scorer: Scorer, corpus: Corpus, config: EvaluateConfig, root_NF: np.ndarray) -> None:
    """(a), (b) and (c): other ways to measure and to fit the same."""
    units = scorer.labelled.units
    windows: dict[int, list[np.ndarray]] = {}
    for i, window in read_windows(corpus, units, "fmri", config, "windows"):
        x_TC = series(window, Points(None), True)
        assert x_TC is not None
        windows.setdefault(i, []).append(root_connectivity(x_TC))
    assert config.window_seconds is not None
    name = f"(a) mean over windows of {config.window_seconds['fmri']:g} s"
    scorer.add_blocks(name, [np.stack([np.mean(windows[i], axis=0) for i in range(len(units))])])
    logs = []
    for unit in units:
        recording = unit.of("fmri")[0]
        x_TC = series(corpus.read_window(recording, 0, recording.n_samples), Points(None), True)
        assert x_TC is not None
        seen = torch.ones(1, len(x_TC), dtype=torch.bool)
        logs.append(upper_triangle(log_correlation(torch.from_numpy(x_TC.T.copy())[None], seen))[0].numpy())
    scorer.add_blocks("(b) logarithm of the shrunk correlation", [np.stack(logs)])
    scorer.add_blocks("(c) every feature standardised", [standardised(root_NF)])
    scorer.add("(c) C chosen in three inner folds of sites", chosen_c(root_NF, scorer.labelled.sites))


def denoisers(scorer: Scorer, root_NF: np.ndarray, halves: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """(f): scores, and the AUROC of telling people that a denoiser was fitted on from others of the same sites."""
    through, everyone = Halves(root_NF, halves, scorer.labelled.sites), np.arange(len(root_NF))
    of = through.gram_of(everyone)
    scorer.add("(f) denoised", on_grams(SVM, of))
    scorer.add("(f) denoised, pairs shuffled within sites", on_grams(SVM, through.gram_of(everyone, shuffled=True)))
    scorer.add("(f) denoised, by one fitted on everybody (transductive)", on_grams(SVM, fixed([of(everyone)])))
    weighed_half = weighed([(of, 0.5), (fixed([gram(root_NF)]), 0.5)])
    scorer.add("(f) denoised, and the root itself, half and half", on_grams(SVM, weighed_half))
    auroc, seen = scorer.given_away(lambda rows: np.diagonal(of(rows)))
    return {"auroc": auroc, "seen": seen}


def _half(measured: dict[str, np.ndarray], learned: Mapping[str, Block]) -> tuple[list[np.ndarray], list[float]]:
    weights = [0.5 / len(learned)] * len(learned) + [0.5 / len(measured)] * len(measured)
    return [block.x_NF for block in learned.values()] + list(measured.values()), weights


def coherence_of_whole(model: MCSP, corpus: Corpus, labelled: Labelled) -> np.ndarray:
    """Imaginary coherence at anchors over all of each unit's one recording ``(N, F)``."""
    whole = read_whole(corpus, labelled.units, "eeg", "coherence")
    found = dict(encode_windows(model, "eeg", whole, 1, kind="measured"))
    measured_NF = np.stack([found[i] for i in range(len(labelled.units))])
    return split_parts(measured_NF, model.measured_widths("eeg"))["coherence"]


def main(argv: Sequence[str] | None = None) -> int:
    """Score everything, write the file."""
    of_model: dict[str, Any] = {"type": Path, "required": True, "help": "an export of one modality"}
    note = {"default": "", "help": "what the export is, for the result file"}
    arguments = arguments_of(__doc__, argv, {"--model": of_model, "--note": note})
    model, corpus = from_pretrained(arguments.model), Corpus(arguments.corpus)
    (modality,) = model.config.modalities
    values = {"model_dir": arguments.model, "corpus_dir": arguments.corpus, "out_dir": arguments.corpus}
    config = with_windows(EvaluateConfig(**values, label=arguments.label), model)
    labelled = read_labels(corpus, arguments.label, None, config.window_seconds)
    keys = [unit.key for unit in labelled.units]
    if modality == "fmri":
        folds = leave_site_out(keys, labelled.y_N, labelled.subjects, labelled.sites)
    else:
        folds = k_fold(keys, labelled.y_N, labelled.subjects, 6, 5)
    described, scorer = describe({"export": model}, corpus, labelled, config), Scorer(labelled, folds)
    rulers, learned = described.rulers[modality], described.encoders["export"].learned[modality]
    anchors = measured_parts(model, corpus, labelled.units, config)[modality]
    told: dict[str, Any] = {}
    for name, x_NF in rulers.features.items():
        scorer.add_blocks(f"ruler {name}", [x_NF])
    for name, x_NF in anchors.items():
        scorer.add_blocks(f"at anchors, {name}", [x_NF])
    for name, block in learned.items():
        scorer.add_blocks(f"learned {name}", [block.x_NF])
    if modality == "eeg":
        scorer.add_blocks("at anchors, coherence of whole recordings", [coherence_of_whole(model, corpus, labelled)])
        scorer.add_blocks("(d) all learned blocks beside all measured ones, half", *_half(anchors, learned))
        chosen = {name: anchors[name] for name in ("root", "relative_power")}
        scorer.add_blocks("root and relative band power", list(chosen.values()))
        for share in (0.1, 0.25, 0.5):
            weights = [share, (1 - share) / 2, (1 - share) / 2]
            blocks = [learned["spatial"].x_NF, *chosen.values()]
            scorer.add_blocks(f"(d) the learned spatial h beside these two, {share}", blocks, weights)
    if modality == "fmri":
        root_NF = rulers.features["root"]
        bold_changes(scorer, corpus, config, root_NF)
        powers = [anchors["band_power"], anchors["relative_power"]]
        scorer.add_blocks("(d) band power beside it, 0.05 each", [root_NF, *powers], [0.9, 0.05, 0.05])
        spatial_NF = learned["spatial"].x_NF
        for share in (0.05, 0.1, 0.25, 0.5):
            scorer.add_blocks(
                f"(d) the learned spatial h beside it, {share}", [root_NF, spatial_NF], [1 - share, share]
            )
        scorer.add_blocks("(e) at anchors", [anchors["root"]])
        assert rulers.halves is not None
        told["denoiser_membership"] = denoisers(scorer, root_NF, rulers.halves)
    kind = f"read_out_{{people}}_{modality}"
    more = {"modality": modality, "export": arguments.note, "protocol": folds.protocol, **told}
    return write(scorer, arguments.label, kind, arguments.out, **more)


if __name__ == "__main__":
    raise SystemExit(main())
