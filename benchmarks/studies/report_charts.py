"""The corpus report of 200 sites with its own SVG charts, and the same charts by matplotlib: bytes and seconds.

.venv/bin/python benchmarks/studies/report_charts.py [--sites 200] [--drawn 10]

Each site has EEG and BOLD of 1,000 recordings: distributions, a spectrum and two traces of each. Matplotlib draws the
charts of ``--drawn`` of the sites with as few parts as it can (text as text, no frame), and the rest is reckoned.
Writes ``benchmarks/results/report_charts_cpu_202611.json``.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mcsp.data_sharding.inspect import report
from mcsp.data_sharding.inspect.survey import FREQUENCIES, QUANTITIES, Group
from mcsp.provenance import made_by
from mcsp.schema import Modality, Recording, Window

OUT = Path(__file__).parents[1] / "results" / "report_charts_cpu_202611.json"
RECORDINGS, CHANNELS = 1000, 64


def main() -> None:
    """Measure both, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--drawn", type=int, default=10, help="sites whose charts matplotlib draws")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    groups = [group(rng, f"site-{k:03d}", m) for k in range(arguments.sites) for m in get_args(Modality)]
    began = time.process_time()
    page = report.make_page(index(arguments.sites), groups, [])
    own = {"seconds": time.process_time() - began, "bytes": len(page.encode()), "charts": page.count("<svg")}
    began, sizes = time.process_time(), [len(svg) for g in groups[: 2 * arguments.drawn] for svg in drawn(g)]
    share = arguments.sites / arguments.drawn
    theirs = {"seconds": share * (time.process_time() - began), "bytes": round(share * sum(sizes))}
    theirs |= {"charts": round(share * len(sizes)), "drawn": len(sizes)}
    found = {"sites": arguments.sites, "own": own, "matplotlib": theirs, **made_by(["matplotlib", "jinja2"])}
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def group(rng: np.random.Generator, site: str, modality: Modality) -> Group:
    """A site's recordings of one modality."""
    sfreq, samples = {"eeg": (200.0, 2000), "fmri": (0.5, 150)}[modality]
    r = Recording(
        key="k", shard="s", member="m", modality=modality, site=site, subject="0" * 32, session="", task="rest", run="",
        split="train", sfreq=sfreq, unit="uV" if modality == "eeg" else "percent", scale=1.0, n_samples=samples,
        n_channels=CHANNELS, dtype="float16", byte_offset=0, crc_offset=0, block_samples=2000, simulated=False,
        onset_seconds=0.0, channels=[f"E{c}" for c in range(CHANNELS)], positions_mm=[0.0] * 3 * CHANNELS,
        channel_good=[c > 3 for c in range(CHANNELS)], valid_spans=[0, samples],
    )  # fmt: skip
    found = Group(site, modality, r.unit, np.arange(RECORDINGS), hours=RECORDINGS / 6)
    found.sfreq[sfreq] = found.channels[CHANNELS] = RECORDINGS
    found.values = {q.name: rng.gamma(2, size=RECORDINGS) for q in QUANTITIES if modality in q.title}
    found.quartiles_3F = np.sort(rng.gamma(2, size=(3, len(FREQUENCIES[modality]))), axis=0)
    found.n_spectra = 12
    found.examples = [Window(rng.standard_normal((samples, CHANNELS)).astype(np.float32), r, 0) for _ in range(2)]
    return found


def index(sites: int) -> dict[str, Any]:
    """Of a corpus of so many sites."""
    counts = {"found": RECORDINGS, "recordings": RECORDINGS, "rejected": 0, "subjects": RECORDINGS, "hours": 300.0}
    of = {f"site-{k:03d}": {**counts, "simulated": False} for k in range(sites)}
    return {
        "totals": {"all": counts, "sites": of, "splits": {"train": counts}}, "reasons": {}, "software": {},
        "schema_version": 1, "index_hash": "0" * 64, "config": {},
    }  # fmt: skip


def drawn(group: Group) -> Sequence[str]:
    """The site's charts by matplotlib: histograms, spectrum, traces."""
    found = [_chart(partial(_histogram, values=values)) for values in group.values.values()]
    found.append(_chart(partial(_spectrum, group=group)))
    return found + [_chart(partial(_traces, window=window)) for window in group.examples]


def _chart(draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 7, "axes.spines.top": False}):
        figure = Figure(figsize=(3.3, 2.0))
        axes = figure.subplots()
        draw(axes)
        sink = io.StringIO()
        FigureCanvasSVG(figure).print_svg(sink, metadata={"Date": None})
    return sink.getvalue()


def _histogram(axes: Axes, values: np.ndarray) -> None:
    shares, edges = np.histogram(values, 20)
    axes.stairs(shares, edges, fill=True)
    axes.stairs(shares, edges, ls="--")
    axes.set_title("histogram")


def _spectrum(axes: Axes, group: Group) -> None:
    assert group.quartiles_3F is not None
    axes.fill_between(FREQUENCIES[group.modality], group.quartiles_3F[0], group.quartiles_3F[2], alpha=0.3)
    axes.plot(FREQUENCIES[group.modality], group.quartiles_3F[1])
    axes.set(yscale="log", title="power")


def _traces(axes: Axes, window: Window) -> None:
    for c in range(8):
        axes.plot(window.x_TC[:: max(1, len(window.x_TC) // 220), c] + 6 * c, lw=0.5)
    axes.set_yticks(6 * np.arange(8), window.recording.channels[:8])


if __name__ == "__main__":
    main()
