"""EEG at rest and during mental arithmetic (eegmat, PhysioNet): pretrain without labels, evaluate on folds of people.

python benchmarks/eegmat.py --data DIR --work DIR [--seeds 0 1] [--steps 150] [--out FILE]
python benchmarks/eegmat.py --table [--out FILE]

DIR holds ``SubjectNN_1.edf`` (rest) and ``SubjectNN_2.edf`` (arithmetic) as PhysioNet has them (physionet.org, eegmat
1.0.0; Zyma et al., Data 4:14, 2019). Pretraining sees all recordings without labels (transductive); the label is the
task, and every person is in one part of a fold. Writes benchmarks/results/eegmat_<people>.json.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from abide import CONTROL, PACKAGES, SHUFFLED, launcher, one_run, run, table

from mcsp.data_sharding.bids.write import write_json, write_participants, write_tsv
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[1]
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


def write_site(data: Path, bids: Path) -> None:
    """One BIDS dataset of all people."""
    root = bids / "eegmat"
    files = sorted(data.glob("Subject*_[12].edf"))
    if not files:
        raise ValueError(f"{data}: expected SubjectNN_1.edf and SubjectNN_2.edf, found none")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the EDF files")
    parser.add_argument("--work", type=Path, help="folder of everything that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of pretraining, one run each (0 1)")
    parser.add_argument("--steps", type=int, default=150, help="of pretraining (150)")
    parser.add_argument("--out", type=Path, help="the result file")
    parser.add_argument("--table", action="store_true", help="print the result file; run nothing")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return 0
    if arguments.data is None or arguments.work is None:
        parser.error("--data and --work: expected folders, found none")
    work = arguments.work.resolve()
    bids, corpus = work / "bids", work / "corpus"
    if not corpus.exists():
        write_site(arguments.data, bids)
    run(launcher("build_corpus", f"bids_root={bids}", f"out_dir={corpus}", "split_fractions=[1, 0, 0]", "workers=1",
        "allow_public_key=true"),
        corpus / "index.json")  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {
        "default": [one_run(work, corpus, "default", s, arguments.steps, CHANGES, EVALUATION) for s in arguments.seeds]
    }
    changes = [*CHANGES, *CONTROL]
    runs[SHUFFLED] = [one_run(work, corpus, "shuffled", arguments.seeds[0], arguments.steps, changes, EVALUATION)]
    people = runs["default"][0]["subjects"]
    content = {**made_by(PACKAGES), "date": f"{date.today():%Y-%m}", "people": people, "runs": runs}
    out = arguments.out or ROOT / "benchmarks" / "results" / f"eegmat_{people}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nresults: {out}\n\n{table(content)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
