"""EEG at rest and during mental arithmetic (eegmat, PhysioNet): pretrain without labels, evaluate on folds of people.

python benchmarks/eegmat.py --data DIR [--work DIR] [--seeds 0 1] [--steps 150] [--limit N] [--out FILE]
python benchmarks/eegmat.py --table --out FILE

DIR holds ``SubjectNN_1.edf`` (rest) and ``SubjectNN_2.edf`` (arithmetic) as PhysioNet has them (physionet.org, eegmat
1.0.0; Zyma et al., Data 4:14, 2019). Pretraining sees all recordings without labels (transductive); the label is the
task, and every person is in one part of a fold. Runs as those of abide.py. Writes
benchmarks/results/eegmat_<people>.json.
"""

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from abide import HALF_SPLIT, Asked, all_runs, began, build, guarded, parsed, written

from mcsp.data_sharding.bids.write import write_json, write_participants, write_tsv

TASKS = {"1": "rest", "2": "arithmetic"}
# Names in the files: "EEG Fp1", "EEG A2-A1" (the reference's own channel), "ECG ECG".
CHANNELS = (
    *("Fp1", "Fp2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4", "T5", "T6", "P3", "P4", "O1", "O2"),
    *("Fz", "Cz", "Pz"),
)
# An EEG of its own length: recordings of arithmetic have 60 s.
CHANGES = [
    *("model.modalities=[eeg]", "window_seconds={eeg: 30}", "batch={paired: 0, eeg: 24, fmri: 0}"),
    *("sites_per_batch=0", "augmentation.opposite_halves=[spatial]"),
]
EVALUATION = ["protocols=[kfold]", "label=task", "classes=[rest, arithmetic]", "folds=6", "seeds=5"]


def recordings(data: Path, limit: int | None) -> list[Path]:
    """Both files of everyone, or of the first ``limit`` people; ``ValueError`` where one has a single file."""
    files = sorted(data.glob("Subject*_[12].edf"))
    if not files:
        raise ValueError(f"{data}: expected SubjectNN_1.edf and SubjectNN_2.edf, found none")
    names = Counter(file.stem.split("_")[0] for file in files)
    if alone := sorted(name for name, count in names.items() if count < len(TASKS)):
        raise ValueError(f"{data}: expected two files of everyone, found one of {', '.join(alone)}")
    return files[: limit and limit * len(TASKS)]


def write_site(files: Sequence[Path], bids: Path) -> None:
    """One BIDS dataset of all people."""
    root = bids / "eegmat"
    for file in files:
        subject, task = file.stem.removeprefix("Subject").split("_")
        stem = root / f"sub-{subject}" / "eeg" / f"sub-{subject}_task-{TASKS[task]}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, f"{stem}_eeg.edf")
        write_json(Path(f"{stem}_eeg.json"), {"PowerLineFrequency": 50, "EEGReference": "linked ears"})
        rows = [(f"EEG {name}", "EEG", "uV") for name in CHANNELS]
        rows += [("EEG A2-A1", "MISC", "uV"), ("ECG ECG", "ECG", "uV")]
        write_tsv(Path(f"{stem}_channels.tsv"), ("name", "type", "units"), rows)
    people = sorted({file.stem.split("_")[0].removeprefix("Subject") for file in files})
    write_participants(root, {}, [(f"sub-{person}",) for person in people])
    write_json(root / "dataset_description.json", {"Name": "eegmat", "BIDSVersion": "1.9.0"})


def study(arguments: argparse.Namespace) -> int:
    """Run what is missing, write the file, print the tables."""
    work, files = arguments.work, recordings(arguments.data, arguments.limit)
    began(work, arguments, len(files) // len(TASKS))
    bids = work / "bids"
    if not (work / "corpus").exists():
        write_site(files, bids)
    corpora = {"all": build(bids, work / "corpus"), "half": build(bids, work / "corpus-half", HALF_SPLIT)}
    config = Asked(arguments.steps, [*CHANGES, *arguments.set], EVALUATION)
    return written(arguments, "eegmat", all_runs(work, arguments.seeds, config, corpora))


def main(argv: Sequence[str] | None = None) -> int:
    """Everything from the recordings to the tables."""
    return guarded(study, parsed(__doc__, 150, argv))


if __name__ == "__main__":
    raise SystemExit(main())
