"""What is done with an export: ``mcsp encode`` and ``predict`` write tables with one row per recording.

``mcsp evaluate``, ``finetune`` and ``explain`` take labelled recordings.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mcsp.commands.settings import require_place, takes
from mcsp.config import EvaluateConfig, ExplainConfig, FinetuneConfig
from mcsp.config.evaluate import WINDOWS_PER_RECORDING
from mcsp.wording import printable


@dataclass(frozen=True)
class About:
    """What the recordings do not say themselves.

    Attributes:
        line_hz: power line frequency of EEG without a sidecar
        measured_positions: digitised positions of electrodes come before those of the 10-05 template
        t_r: repetition time [s] of BOLD without a sidecar
        parcellation: of BOLD: a label image, a table of parcels, or the name of an atlas
        parcel_table: *_dseg.tsv of the label image
        percent: tables of BOLD are in percent signal change already
        space: standard space of images whose names do not say it
        min_seconds: shorter recordings are refused; default: as in pretraining
    """

    line_hz: float | None = None
    measured_positions: bool = False
    t_r: float | None = None
    parcellation: str | None = None
    parcel_table: Path | None = None
    percent: bool = False
    space: str | None = None
    min_seconds: float | None = None


Stated = Annotated[About, Parameter(name="*", group="About the recordings")]


def encode(
    model_dir: Path,
    /,
    *recordings: Path,
    out: Path,
    windows_per_recording: int = WINDOWS_PER_RECORDING,
    window_seconds: float | None = None,
    about: Stated = About(),
) -> int:
    """Encode recordings with an exported model: a table of features, one row per recording.

    A recording that cannot be used has its reason in its row. The status is 1 where
    none could be used.

    mcsp encode MODEL_DIR RECORDINGS... --out features.tsv

    Args:
        model_dir: an export
        recordings: files of EEG or BOLD, patterns (*.edf), BIDS datasets or folders
        out: table to write: .tsv, or .npz for arrays
        windows_per_recording: evenly spaced; learned features are averaged over them
        window_seconds: default: as in pretraining
    """
    require_place(model_dir, "model_dir")
    _require_table(out, (".tsv", ".npz"), recordings)
    from mcsp.encode.files import Features, encode_files, find_files, write_features
    from mcsp.encode.recording import Options

    Options(windows_per_recording, window_seconds, min_seconds=about.min_seconds)  # refused before the work
    cut = {"windows_per_recording": windows_per_recording, "window_seconds": window_seconds}
    files, good = find_files(recordings), 0

    def rows() -> Iterator[Features]:
        nonlocal good
        for row in encode_files(files, model_dir, {**cut, **asdict(about)}):
            good += not row.error
            print(printable(f"{row.recording}: {row.error or 'encoded'}"), file=sys.stderr)
            yield row

    write_features(rows(), out)
    return _told(out, len(files), good)


def predict(classifier_dir: Path, /, *recordings: Path, out: Path, about: Stated = About()) -> int:
    """Predict from recordings with what ``mcsp finetune`` or ``mcsp evaluate`` wrote: one row per recording.

    Columns: recording, modality; class, its calibrated probability, p(<class>) of
    every class, or of a number value, low and high (of its interval); distance from
    the training data (1 is typical of them), closer (percent of held-out training
    units that were closer), flags (quality, missing channels, unlike the training
    data, chance), error (why there is nothing else). A recording that is further
    away than all held-out units has no probability, or no interval: none is known
    there. The status is 1 where no recording could be used.

    mcsp predict OUT_DIR/classifier RECORDINGS... --out table.tsv

    Args:
        classifier_dir: classifier/ in the folder of finetune or evaluate
        recordings: files of EEG or BOLD, patterns (*.edf), BIDS datasets or folders
        out: table to write, .tsv
    """
    require_place(classifier_dir, "classifier_dir")
    _require_table(out, (".tsv",), recordings)
    from mcsp.encode.deployed import LoadedClassifier
    from mcsp.encode.files import find_files, write_table
    from mcsp.encode.recording import Options

    Options(min_seconds=about.min_seconds)
    classifier = LoadedClassifier(classifier_dir, **asdict(about))
    files, good = find_files(recordings), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal good
        for file in files:
            row = classifier.predict_or_tell(file).row()
            good += not row["error"]
            print(printable(f"{file}: {row['error'] or _in_words(row)}"), file=sys.stderr)
            yield row

    write_table(out, classifier.columns, rows())
    return _told(out, len(files), good)


def _in_words(row: dict[str, Any]) -> str:
    sure = row["probability"] if row["class"] else row["low"]
    if row["class"]:
        said = row["class"] + ("" if sure is None else f", probability {sure:.2f}")
    else:
        said = f"{row['value']:.4g}" + ("" if sure is None else f" ({sure:.4g} to {row['high']:.4g})")
    return f"{said}; {row['flags']}" if row["flags"] else said


def _require_table(out: Path, suffixes: tuple[str, ...], recordings: tuple[Path, ...]) -> None:
    """What is asked is refused before anything is imported or read."""
    if out.suffix not in suffixes:
        raise ValueError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that is there, found no {out.parent}")
    if not recordings:
        raise ValueError("expected files of recordings, found none")


def _told(out: Path, total: int, good: int) -> int:
    print(f"{out}: {good} of {total} recordings")
    return 0 if good else 1


_PLACES = ("model_dir", "corpus_dir", "bids_root")


def _tell_classifier(out_dir: Path) -> None:
    if (out_dir / "classifier").is_dir():
        print(f"predict: mcsp predict {out_dir / 'classifier'} RECORDINGS... --out table.tsv")


@takes(EvaluateConfig, (*_PLACES, "run_dir"))
def evaluate(config: EvaluateConfig) -> int:
    """Evaluate an export on a labelled corpus or BIDS folders: probes beside their baselines, retrieval, one report.

    mcsp evaluate --config evaluate/demo.yaml model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis
    """
    from mcsp.evaluate.evaluate import evaluate as run  # after parsing: a typing error should not wait for its imports
    from mcsp.evaluate.report.tables import terminal_table

    print(terminal_table(run(config)))
    print(f"results: {config.out_dir / 'results.json'}")
    print(f"report:  {config.out_dir / 'report.html'}")
    _tell_classifier(config.out_dir)
    return 0


@takes(FinetuneConfig, _PLACES)
def finetune(config: FinetuneConfig) -> int:
    """Fine-tune an export on a labelled corpus and test it on subjects, or sites, that it was not trained on.

    mcsp finetune model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis depth=last_layers
    """
    from mcsp.evaluate.finetune import finetune as run
    from mcsp.evaluate.report.tables import interval, overlap_line

    results = run(config)
    trained = results["parameters"]
    print(
        f"trained ({config.depth}): {trained['head']:,} parameters of the head and {trained['encoder']:,} of the "
        f"encoder, of {trained['all']:,}"
    )
    for row in results["scores"]:
        main, within = ("R2", "r_sites") if "r2" in row else ("AUROC", "auroc_sites")
        print(f"{row['features']:<12} {main} {interval(row[main.lower()])}, within sites {interval(row[within])}")
    print(f"difference   {interval(results['scores'][0].get('finetuned_minus_frozen'), '+.3f')}")
    print(overlap_line(results))
    print(f"results: {config.out_dir / 'results.json'}")
    _tell_classifier(config.out_dir)
    return 0


@takes(ExplainConfig, (*_PLACES, "finetuned_dir"))
def explain(config: ExplainConfig) -> int:
    """Show the channels and frequency bands that a classifier uses, with controls and pictures.

    mcsp explain model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis [finetuned_dir=DIR]
    """
    from mcsp.explain.explain import explain as run
    from mcsp.explain.report import strongest

    print("\n".join(strongest(run(config))))
    print(f"numbers: {config.out_dir / 'attribution.json'}")
    print(f"report:  {config.out_dir / 'report.html'}")
    return 0
