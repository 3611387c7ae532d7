"""Share of padding in a batch, with one shape for all and with micro-batches of like shape.

    python benchmarks/studies/padding.py [--corpus NAME=DIR ...] [--steps K]     writes benchmarks/results/padding.json
    python benchmarks/studies/padding.py --table                                prints its table

Counted are values of windows (channels x time samples), of the steps that a schedule draws: all of them over those with
padding. "Before" pads every batch to the largest window of the run; "after" each micro-batch to its own largest. The
mixed consortium is a table of recordings without signals: twelve sites with the montages, parcellations and rates that
public sets have, and as many people as such sets have. ``--corpus`` measures corpora that were built, too.
"""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mcsp.config import BatchConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.provenance import made_by
from mcsp.schema import MODALITIES, Modality, Recording
from mcsp.training.reading.schedule import Schedule

RESULT = Path(__file__).parents[1] / "results" / "padding.json"
WINDOW_SECONDS: dict[Modality, float] = {"eeg": 30.0, "fmri": 200.0}
SPLITS = ((1, 1), (1, 4), (2, 1), (2, 4), (8, 1), (8, 4))  # ranks, micro-batches of each
# People, EEG channels and rate [Hz] (0: none), parcels and repetition time [s] (0: none) of each site.
SITES = (
    (300, 19, 200.0, 0, 0.0), (120, 21, 200.0, 0, 0.0), (200, 32, 200.0, 0, 0.0), (110, 64, 160.0, 0, 0.0),
    (60, 128, 200.0, 0, 0.0), (20, 256, 200.0, 0, 0.0), (180, 0, 0.0, 200, 2.0), (100, 0, 0.0, 200, 3.0),
    (100, 0, 0.0, 200, 1.5), (60, 0, 0.0, 100, 2.5), (100, 0, 0.0, 400, 0.72), (40, 64, 200.0, 0, 0.0),
)  # fmt: skip


def mixed() -> Recordings:
    """The table of the mixed consortium."""
    rows = []
    for number, (people, channels, hz, parcels, t_r) in enumerate(SITES):
        for person in range(people):
            key = f"site{number:02d}-{person:04d}"
            if channels:
                rows.append(_recording(key, number, "eeg", channels, hz))
            if parcels:
                rows.append(_recording(key, number, "fmri", parcels, 1 / t_r))
    return Recordings.of(sorted(rows, key=lambda r: r.member))


def _recording(key: str, site: int, modality: Modality, channels: int, sfreq: float) -> Recording:
    return Recording(
        key=key, shard=f"train-{site:06d}.tar", member=f"{key}.{modality}-0.npy", modality=modality, site=f"site{site}",
        subject=key, session="", task="rest", run="", split="train", sfreq=sfreq, unit="a.u.", scale=1.0,
        n_samples=round(300 * sfreq), n_channels=channels, dtype="float16", byte_offset=512, crc_offset=0,
        block_samples=100, simulated=True, onset_seconds=math.nan,
    )  # fmt: skip


def shares(schedule: Schedule, steps: int) -> list[dict[str, Any]]:
    """For each number of ranks and micro-batches the real share of values, by modality, before and after.

    ``longest`` is what the slowest ranks compute: of micro-batches that all ranks compute at the same time, the one
    with most values; relative to padding all of them to the largest window of the run.
    """
    drawn = [cut for step in range(steps) for draw in schedule.draws(step) for cut in draw.cuts]
    largest = {m: _largest((c.recording.n_channels, c.n_samples) for c in drawn if c.recording.modality == m)
               for m in MODALITIES if any(c.recording.modality == m for c in drawn)}  # fmt: skip
    found = []
    for ranks, micro in SPLITS:
        real, before, after, slowest = (dict.fromkeys(largest, 0) for _ in range(4))
        for step in range(steps):
            for i in range(micro):
                most = dict.fromkeys(largest, 0)
                for rank in range(ranks):
                    cuts = [cut for draw in schedule.draws(step, rank, ranks, i, micro) for cut in draw.cuts]
                    for m in largest:
                        shapes = [(c.recording.n_channels, c.n_samples) for c in cuts if c.recording.modality == m]
                        padded = len(shapes) * _values(_largest(shapes))
                        real[m] += sum(map(_values, shapes))
                        before[m] += len(shapes) * _values(largest[m])
                        after[m] += padded
                        most[m] = max(most[m], padded)
                for m in largest:
                    slowest[m] += ranks * most[m]
        found.append(
            {"ranks": ranks, "micro_batches": micro}
            | {f"before/{m}": round(real[m] / before[m], 4) for m in largest}
            | {f"after/{m}": round(real[m] / after[m], 4) for m in largest}
            | {f"longest/{m}": round(slowest[m] / before[m], 4) for m in largest}
        )
    return found


def _largest(shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    channels, samples = zip(*shapes, strict=True)
    return max(channels), max(samples)


def _values(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def schedule_of(recordings: Recordings, index_hash: str) -> Schedule:
    """64 samples of each modality per step, or of the one that is there."""
    there = {r.modality for r in recordings}
    quota = BatchConfig(paired=0, eeg=64 * ("eeg" in there), fmri=64 * ("fmri" in there))
    return Schedule(
        recordings, index_hash=index_hash, seed=0, quota=quota, window_seconds=WINDOW_SECONDS, delay_seconds=5.0
    )


def table(found: dict[str, Any]) -> str:
    """Rows of corpus, ranks and micro-batches."""
    lines = [
        "| corpus | modality | ranks | micro-batches | real values before | after | slowest rank |",
        "|---" * 7 + "|",
    ]
    for name, rows in found["corpora"].items():
        for modality in MODALITIES:
            for row in rows:
                if f"after/{modality}" in row:
                    cells = [name, modality, str(row["ranks"]), str(row["micro_batches"])]
                    cells += [f"{row[f'{kind}/{modality}']:.0%}" for kind in ("before", "after", "longest")]
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Count, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="*", default=[], metavar="NAME=DIR", help="corpora to measure, too")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="print the result file; count nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return
    found = {"mixed consortium": shares(schedule_of(mixed(), "mixed"), arguments.steps)}
    for name, folder in (pair.split("=", 1) for pair in arguments.corpus):
        corpus = Corpus(Path(folder))
        found[name] = shares(schedule_of(corpus.recordings, corpus.index_hash), arguments.steps)
    content = {"what": __doc__, **made_by(("numpy",)), "steps": arguments.steps, "sites": SITES, "corpora": found}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
