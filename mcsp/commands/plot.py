"""Draw a pretraining run: losses, what holds for people set aside, where time goes, speed, memory, what went wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.training.clock import SPLIT
from mcsp.training.health import suspects

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
KINDS = {
    "two views": lambda name: name.count("/") == 1 and "-" not in name,
    "two domains": lambda name: name.count("/") == 1 and "-" in name.split("/")[1],
    "two modalities": lambda name: name.count("/") == 1 and "-" in name.split("/")[0],
    "distillation": lambda name: name.startswith("distillation/"),
    "convergence": lambda name: name.startswith("convergence/"),
}
VALIDATION = "validation/"
MARKS = {"start": ("restart", "#888888", ":"), "rollback": ("rollback", "#D55E00", "--")}


def draw(run_dir: Path, lines: list[dict[str, float]], events: list[dict[str, Any]], out: Path) -> None:
    """One PNG with ten panels over the step, and four more where the run was evaluated."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    step = np.array([line["step"] for line in lines])
    columns = {name: np.array([line.get(name, np.nan) for line in lines]) for name in sorted(set().union(*lines))}
    evaluated = [name for name in columns if name.startswith(VALIDATION)]
    rows = 7 if evaluated else 5
    figure, axes = plt.subplots(rows, 2, figsize=(13, 3.2 * rows), sharex=True, layout="constrained")
    panels = axes.ravel()
    _lines(panels[0], step, {"sum of all terms": columns["loss"]}, "loss")
    _lines(panels[1], step, by_kind(columns, "loss/"), "loss, mean of terms", log=True)
    _lines(panels[2], step, by_kind(columns, "top1/"), "top-1 retrieval in the batch")
    _chance(panels[2], run_dir)
    _lines(panels[3], step, by_kind(columns, "temperature/"), "temperature, mean of terms")
    _lines(panels[4], step, {"before clipping": columns["gradient_norm"]}, "gradient norm", log=True)
    _lines(panels[5], step, {"learning rate": columns["learning_rate"]}, "learning rate", smooth=False)
    _split(panels[6], step, columns)
    _lines(panels[7], step, {"samples/s": columns["samples_per_second"]}, "samples per second")
    _right(panels[7], step, columns.get("goodput"), "goodput", 1.0)
    _lines(panels[8], step, {"data wait": 100 * columns["data_wait_fraction"]}, "waiting for data, % of a step")
    _right(panels[8], step, columns.get("memory_gib"), "peak memory of rank 0, GiB")
    # The first step waits for the workers to start: the axis is for the others.
    panels[8].set_ylim(0, max(5.0, 150 * float(np.nanpercentile(columns["data_wait_fraction"], 98))))
    _lines(panels[9], step, {"TFLOP/s": columns["tflops"]}, "TFLOP/s per rank")
    _right(panels[9], step, columns.get("mfu"), "MFU", 1.0)
    if evaluated:
        _validation(panels[10:], step, columns)
    _events(panels, events, int(step[-1]))
    for panel in axes[-1]:
        panel.set_xlabel("step")
    figure.suptitle(_title(run_dir, int(step[-1]), events), fontsize=12)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def by_kind(columns: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Mean over the terms of each kind of the columns that start with ``prefix``."""
    names = [name.removeprefix(prefix) for name in columns if name.startswith(prefix)]
    found = {kind: [columns[prefix + name] for name in names if fits(name)] for kind, fits in KINDS.items()}
    return {f"{kind} ({len(values)})": np.mean(values, axis=0) for kind, values in found.items() if values}


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
    for colour, (name, values) in zip(COLOURS, series.items(), strict=False):
        if smooth and width > 1:
            panel.plot(step, values, color=colour, linewidth=0.8, alpha=0.3)
            values = smoothed(values, width)
        panel.plot(step, values, color=colour, linewidth=1.5, label=name)
    if log:
        panel.set_yscale("log")
        for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            axis("{x:g}")
    panel.set_ylabel(label)
    panel.grid(alpha=0.25)
    if len(series) > 1:
        panel.legend(fontsize=8, loc="best", framealpha=0.8)


def _right(panel: Any, step: np.ndarray, values: np.ndarray | None, label: str, top: float | None = None) -> None:
    """A second quantity in green, its axis on the right; both axes from zero."""
    panel.set_ylim(bottom=0)
    if values is not None:
        right = panel.twinx()
        right.plot(step, values, color=COLOURS[2], linewidth=1.5)
        right.set_ylim(0, top or 1.25 * float(np.nanmax(values)))
        right.set_ylabel(f"{label} (green)", color=COLOURS[2])


def _chance(panel: Any, run_dir: Path) -> None:
    path = run_dir / "config.json"
    panel.set_ylim(0, 1.02)
    if path.exists():
        paired = json.loads(path.read_text())["batch"]["paired"]
        if paired:
            panel.axhline(1 / paired, color="#888888", linewidth=1)
            panel.annotate(f"chance among {paired}", (0.99, 1 / paired), xycoords=("axes fraction", "data"), fontsize=8,
                           va="bottom", ha="right", color="#555555")  # fmt: skip


def _split(panel: Any, step: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    width = max(1, len(step) // 50)
    parts = {name: columns[f"seconds/{name}"] for name in SPLIT if f"seconds/{name}" in columns}
    stack = [smoothed(values, width) if name != "checkpoint" else values for name, values in parts.items()]
    # Without the first step, in which workers start and memory is first used.
    whole = np.nansum(columns["seconds_per_step"][1:]) or np.nan
    share = [f"{name} {100 * np.nansum(values[1:]) / whole:.0f} %" for name, values in parts.items()]
    panel.stackplot(step, *stack, colors=COLOURS, labels=share, alpha=0.85, linewidth=0)
    # Checkpoints are rare and long: the axis is for the other steps.
    panel.set_ylim(0, 1.25 * np.nanpercentile(columns["seconds_per_step"], 95))
    panel.set_ylabel("seconds per step")
    panel.legend(fontsize=8, loc="upper right", framealpha=0.8, ncols=2)
    panel.grid(alpha=0.25)


def _validation(panels: Any, step: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """What holds for people set aside: loss, prediction across halves, identification, and the site."""
    made = np.isfinite(columns[f"{VALIDATION}loss"])

    def of(kind: str) -> dict[str, np.ndarray]:
        start = f"{VALIDATION}{kind}/"
        return {name.removeprefix(start): values[made] for name, values in columns.items() if name.startswith(start)}

    panels[0].plot(step, columns["loss"], color="#888888", linewidth=0.8, alpha=0.5, label="training")
    panels[0].plot(
        step[made], columns[f"{VALIDATION}loss"][made], "o-", markersize=3, color=COLOURS[0], label="set aside"
    )
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize=8)
    titles = {
        "half_error": "error across halves; 1: mean over people",
        "identification": "identification across halves",
        "site_h": "site told from h; dotted: from the input",
    }
    for panel, (kind, title) in zip(panels[1:], titles.items(), strict=True):
        for colour, (name, values) in zip(COLOURS, of(kind).items(), strict=False):
            panel.plot(step[made], values, "o-", markersize=3, color=colour, label=name)
            inputs = of("site_input") if kind == "site_h" else {}
            if name in inputs:
                panel.plot(step[made], inputs[name], ":", color=colour)
        panel.set_ylabel(title)
        panel.legend(fontsize=7, ncols=2, framealpha=0.8)
        panel.set_ylim(bottom=0)
    panels[1].axhline(1, color="#888888", linewidth=1)
    for panel in panels:
        panel.grid(alpha=0.25)


def _events(panels: Any, events: list[dict[str, Any]], last: int) -> None:
    """Restarts and rollbacks as lines through all panels, skipped steps as ticks at their foot."""
    skips = [e["step"] for e in events if e["event"] == "skip" and e["step"] <= last]
    first = next((i for i, e in enumerate(events) if e["event"] == "start"), 0)
    for panel in panels:
        for number, event in enumerate(events):
            if event["event"] in MARKS and number != first:
                _, colour, style = MARKS[event["event"]]
                panel.axvline(event["step"], color=colour, linestyle=style, linewidth=1)
        if skips:
            panel.plot(skips, [0.02] * len(skips), "^", transform=panel.get_xaxis_transform(), color="#D55E00",
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
