"""``mcsp plot``: losses, validation, parts of a step, speed, memory and faults of a pretraining run as one picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.export.curves import SET_ASIDE, as_columns, by_kind
from mcsp.page import COLOURS, GREY, MARKERS
from mcsp.training.clock import SPLIT
from mcsp.training.health import suspects

MARKS = {"start": (GREY, ":"), "rollback": (COLOURS[1], "--")}


def draw(run_dir: Path, lines: list[dict[str, float]], events: list[dict[str, Any]], out: Path) -> None:
    """One PNG of panels over the step: the objective, how it learns, where the time goes, and people set aside."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = as_columns(lines)
    step = columns["step"]
    measures = [kind for kind in MEASURES if any(name.startswith(f"{SET_ASIDE}{kind}/") for name in columns)]
    rows = 5 + -(-len(measures) // 2)
    with plt.rc_context({"text.parse_math": False, "axes.grid": True, "grid.alpha": 0.25, "legend.fontsize": 8}):
        figure, axes = plt.subplots(rows, 2, figsize=(13, 3.2 * rows), sharex=True, layout="constrained")
        panels = axes.ravel()
        _objective(panels[:4], step, columns, run_dir)
        _lines(panels[4], step, {"before clipping": columns["gradient_norm"]}, "gradient norm", log=True)
        _lines(panels[5], step, {"learning rate": columns["learning_rate"]}, "learning rate", smooth=False)
        _time(panels[6:10], step, columns)
        for panel, kind in zip(panels[10:], measures, strict=False):
            _measure(panel, step, columns, kind)
        for panel in panels[10 + len(measures) :]:
            panel.set_visible(False)
        _events(panels, events, int(step[-1]))
        for panel in (*axes[-1], *(axes[-2][1:] if len(measures) % 2 else ())):
            panel.set_xlabel("step")
            panel.tick_params(labelbottom=True)
        figure.suptitle(_title(run_dir, int(step[-1]), events), fontsize=12)
        figure.savefig(out, dpi=110)
        plt.close(figure)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Running median over ``width`` neighbours; what is not finite does not count."""
    half = width // 2
    padded = np.pad(np.where(np.isfinite(values), values, np.nan), half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    empty = np.isnan(windows).all(axis=1)
    return np.where(empty, np.nan, np.nanmedian(np.where(empty[:, None], 0.0, windows), axis=1))


def _lines(
    panel: Any, step: np.ndarray, series: dict[str, np.ndarray], label: str, log: bool = False, smooth: bool = True
) -> None:
    """Raw values faint, their running median above them."""
    width = max(1, len(step) // 50)
    for k, (name, values) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        if smooth and width > 1:
            panel.plot(step, values, color=colour, linewidth=0.8, alpha=0.3)
            values = smoothed(values, width)
        panel.plot(step, values, color=colour, linewidth=1.5, label=name)
    if log:
        _logarithmic(panel)
    panel.set_ylabel(label)
    if len(series) > 1:
        panel.legend(loc="best", framealpha=0.8, ncols=2)


def _logarithmic(panel: Any) -> None:
    """A logarithmic axis with labels at 1, 2 and 5 only where few decades are shown, so that they do not collide."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_yscale("log")
    low, high = np.log10(panel.get_ylim())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2.5 else (1,), numticks=12))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _set_aside(panel: Any, step: np.ndarray, series: dict[str, np.ndarray]) -> None:
    """What was found for people set aside, as marks in the colours of the training's lines."""
    for k, values in enumerate(series.values()):
        made, colour, mark = np.isfinite(values), COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        label = "marks: people set aside" if k == 0 else None
        panel.plot(step[made], values[made], mark, markersize=4, color=colour, label=label)
    if series:
        panel.legend(loc="best", framealpha=0.8, ncols=2)


def _objective(panels: Any, step: np.ndarray, columns: dict[str, np.ndarray], run_dir: Path) -> None:
    """The loss, its terms by kind, and the retrieval, in training and for people set aside."""
    _lines(panels[0], step, {"training, sum of all terms": columns["loss"]}, "loss")
    _set_aside(panels[0], step, {n: v for n, v in columns.items() if n == f"{SET_ASIDE}loss"})
    kinds = by_kind(columns, "loss/"), by_kind(columns, f"{SET_ASIDE}loss/")
    _lines(panels[1], step, kinds[0], "loss, mean of terms")
    _set_aside(panels[1], step, kinds[1])
    kinds = by_kind(columns, "top1/"), by_kind(columns, f"{SET_ASIDE}top1/")
    _lines(panels[2], step, kinds[0], "top-1 retrieval in the batch")
    _set_aside(panels[2], step, kinds[1])
    panels[2].set_ylim(0, 1.02)
    config = run_dir / "config.json"
    batch = json.loads(config.read_text())["batch"] if config.exists() else {}
    # Views and domains are compared among all samples of a modality, modalities among those that have both.
    among = {batch.get("paired", 0)} | {batch.get("paired", 0) + batch.get(m, 0) for m in ("eeg", "fmri")}
    for n in sorted(among - {0}):
        _chance(panels[2], 1 / n, f"chance among {n}", "right" if n == max(among) else "left")
    _lines(panels[3], step, by_kind(columns, "temperature/"), "temperature, mean of terms")


def _chance(panel: Any, value: float, text: str, side: str = "right") -> None:
    """A line where guessing would be, with its name at one end."""
    panel.axhline(value, color=GREY, linewidth=1, zorder=0)
    place = (0.99 if side == "right" else 0.01, value)
    panel.annotate(text, place, xycoords=("axes fraction", "data"), fontsize=8, va="bottom", ha=side, color=GREY)


def _time(panels: Any, step: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """Where the time of a step goes, speed, waiting and memory."""
    _split(panels[0], step, columns)
    _lines(panels[1], step, {"samples/s": columns["samples_per_second"]}, "samples per second")
    _right(panels[1], step, columns.get("goodput"), "goodput", 1.0)
    _lines(panels[2], step, {"data wait": 100 * columns["data_wait_fraction"]}, "waiting for data, % of a step")
    _right(panels[2], step, columns.get("memory_gib"), "peak memory of rank 0, GiB")
    # The first step waits for the workers to start: the axis is for the others.
    panels[2].set_ylim(0, max(5.0, 150 * float(np.nanpercentile(columns["data_wait_fraction"], 98))))
    _lines(panels[3], step, {"TFLOP/s": columns["tflops"]}, "TFLOP/s per rank")
    _right(panels[3], step, columns.get("mfu"), "MFU", 1.0)


def _right(panel: Any, step: np.ndarray, values: np.ndarray | None, label: str, top: float | None = None) -> None:
    """A second quantity in green, its axis on the right; both axes from zero."""
    panel.set_ylim(bottom=0)
    if values is not None and np.isfinite(values).any():
        right = panel.twinx()
        right.plot(step, values, color=COLOURS[2], linewidth=1.5)
        right.set_ylim(0, top or 1.25 * float(np.nanmax(values)))
        right.set_ylabel(f"{label} (green)", color=COLOURS[2])
        right.grid(visible=False)


def _split(panel: Any, step: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    width = max(1, len(step) // 50)
    parts = {name: columns[f"seconds/{name}"] for name in SPLIT if f"seconds/{name}" in columns}
    stack = [smoothed(values, width) if name != "checkpoint" else values for name, values in parts.items()]
    # Without the first step, in which workers start and memory is first used.
    whole = np.nansum(columns["seconds_per_step"][1:]) or np.nan
    share = [f"{name} {100 * np.nansum(values[1:]) / whole:.0f} %" for name, values in parts.items()]
    panel.stackplot(step, *stack, colors=(*COLOURS, GREY), labels=share, alpha=0.85, linewidth=0)
    # Checkpoints are rare and long: the axis is for the other steps.
    panel.set_ylim(0, 1.25 * np.nanpercentile(columns["seconds_per_step"], 95))
    panel.set_ylabel("seconds per step")
    panel.legend(loc="upper right", framealpha=0.8, ncols=2)


# What is measured of people set aside, beside the objective: name of its axis, and where guessing or not learning ends.
MEASURES = {
    "half_error": ("error across halves", 1.0, "mean over people"),
    "identification": ("identification across halves", None, ""),
    "site_h": ("site predicted from h; dotted: from the input", None, ""),
}


def _measure(panel: Any, step: np.ndarray, columns: dict[str, np.ndarray], kind: str) -> None:
    """One measure of people set aside, a line per modality and domain."""
    title, level, text = MEASURES[kind]
    of = {name.removeprefix(f"{SET_ASIDE}{kind}/"): v for name, v in columns.items() if f"{SET_ASIDE}{kind}/" in name}
    for k, (name, values) in enumerate(of.items()):
        made, colour = np.isfinite(values), COLOURS[k % len(COLOURS)]
        panel.plot(step[made], values[made], MARKERS[k % len(MARKERS)], ls="-", markersize=4, color=colour, label=name)
        inputs = columns.get(f"{SET_ASIDE}site_input/{name}") if kind == "site_h" else None
        if inputs is not None:
            panel.plot(step[made], inputs[made], ":", color=colour)
    if kind == "identification":  # one of so many people of the modality
        for side, modality in zip(("left", "right"), sorted({name.split("/")[0] for name in of}), strict=False):
            n = int(np.nanmax(columns[f"{SET_ASIDE}people/{modality}"]))
            _chance(panel, 1 / n, f"chance, {n} people with {modality}", side)
    if level is not None:
        _chance(panel, level, text)
    panel.set_ylabel(title)
    panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
    panel.legend(fontsize=7, ncols=2, framealpha=0.8)


def _events(panels: Any, events: list[dict[str, Any]], last: int) -> None:
    """Restarts and rollbacks as lines through all panels, skipped steps as ticks at their foot."""
    skips = [e["step"] for e in events if e["event"] == "skip" and e["step"] <= last]
    first = next((i for i, e in enumerate(events) if e["event"] == "start"), 0)
    for panel in panels:
        for number, event in enumerate(events):
            if event["event"] in MARKS and number != first:
                colour, style = MARKS[event["event"]]
                panel.axvline(event["step"], color=colour, linestyle=style, linewidth=1)
        if skips:
            panel.plot(skips, [0.02] * len(skips), "^", transform=panel.get_xaxis_transform(), color=COLOURS[1],
                       markersize=6, clip_on=False)  # fmt: skip


def _title(run_dir: Path, step: int, events: list[dict[str, Any]]) -> str:
    def counted(kind: str, less: int = 0) -> int:
        return max(0, sum(e["event"] == kind for e in events) - less)

    title = f"{run_dir.name}: step {step}"
    end = run_dir / "exit.json"
    if end.exists():
        ended = json.loads(end.read_text())
        title += f", {ended['reason']}" + (f" ({ended['detail']:.80})" if ended["detail"] else "")
    often = [f"{key} ({n})" for key, n in list(suspects(events).items())[:3]]
    title += f"\nin several skipped steps: {', '.join(often)}" if often else ""
    return (
        f"{title}\n{counted('start', 1)} restarts (dotted), {counted('rollback')} rollbacks (dashed), "
        f"{counted('skip')} skipped steps (triangles)"
    )
