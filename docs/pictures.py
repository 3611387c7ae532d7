"""Pictures of the documentation, drawn from lists of boxes and arrows, each for a light and a dark page.

``python docs/pictures.py`` writes the README's picture to docs/images; the site's configuration writes all of them to
docs/images/drawn.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mcsp.page import COLOURS, GREY

IMAGES = Path(__file__).parent / "images"
INK = {"light": "#1b1f24", "dark": "#e6e6e6"}
BLUE, RED, GREEN, PINK, ORANGE, SKY = COLOURS
INCHES = 0.1  # of one unit of the lists below


class Box(NamedTuple):
    """A text in a frame: lower left corner and size, in units of a tenth of an inch."""

    x: float
    y: float
    width: float
    height: float
    text: str = ""
    colour: str = GREY
    frame: bool = True


class Arrow(NamedTuple):
    """From one box to another, by their places in the list; the text lies beside its middle."""

    start: int
    end: int
    text: str = ""


Drawing = tuple[Sequence[Box], Sequence[Arrow]]


def draw(drawing: Drawing, ink: str, out: Path) -> None:
    """Write an SVG without background; the same list gives the same bytes with the same Matplotlib."""
    boxes, arrows = drawing
    right, top = max(b.x + b.width for b in boxes) + 0.5, max(b.y + b.height for b in boxes) + 0.5
    left, bottom = min(b.x for b in boxes) - 0.5, min(b.y for b in boxes) - 1.5
    figure = Figure(figsize=(INCHES * (right - left), INCHES * (top - bottom)), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    patches = []
    for box in boxes:
        style = "round,pad=0,rounding_size=0.8" if min(box.width, box.height) > 2 else "square,pad=0"
        patch = FancyBboxPatch((box.x, box.y), box.width, box.height, style, linewidth=1.2)
        patch.set(facecolor=(box.colour, 0.22), edgecolor=box.colour, visible=box.frame)
        patches.append(axes.add_patch(patch))
        centre = (box.x + box.width / 2, box.y + box.height / 2)
        axes.text(*centre, box.text, color=ink, ha="center", va="center", fontsize=9.5, linespacing=1.25)
    for arrow in arrows:
        start, end = (boxes[i] for i in (arrow.start, arrow.end))
        (x0, x1), (y0, y1) = (
            _ends(start.x, start.width, end.x, end.width),
            _ends(start.y, start.height, end.y, end.height),
        )
        axes.annotate(
            "", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": ink, "shrinkA": 1, "shrinkB": 1}
        )
        beside = (0.6, 0) if abs(y1 - y0) > abs(x1 - x0) else (0, 0.7)
        place = ((x0 + x1) / 2 + beside[0], (y0 + y1) / 2 + beside[1])
        axes.text(*place, arrow.text, color=ink, fontsize=8.5, ha="left" if beside[0] else "center", va="center")
    out.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "mcsp"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})


def _ends(start: float, start_size: float, end: float, end_size: float) -> tuple[float, float]:
    """Along one axis: facing edges of two boxes, or the middle of what they share."""
    if start + start_size <= end:
        return start + start_size, end
    if end + end_size <= start:
        return start, end + end_size
    middle = (max(start, end) + min(start + start_size, end + end_size)) / 2
    return middle, middle


def chain(texts: Sequence[tuple[str, str]], x: float, width: float, height: float, gap: float) -> list[Box]:
    """Boxes below each other, the first on top."""
    return [Box(x, -i * (height + gap), width, height, text, colour) for i, (text, colour) in enumerate(texts)]


def overview() -> Drawing:
    """From recordings to predictions; no wider than a phone shows without making letters smaller."""
    texts = [
        ("Recordings\nBIDS, many sites\nEEG and fMRI", BLUE),
        ("Corpus\ncleaned, checked\nno names", SKY),
        ("Pretraining\nno labels\nDeepSpeed", ORANGE),
        ("Weights\nsafetensors\nmodel card", GREEN),
        ("Your recordings: features, predictions", PINK),
    ]
    places = [(0, 20.5, 14, 7), (22, 20.5, 14, 7), (22, 9.5, 14, 7), (0, 9.5, 14, 7), (0, 1.5, 36, 4)]
    boxes = [Box(*place, text, colour) for place, (text, colour) in zip(places, texts, strict=True)]
    verbs = ("build", "pretrain", "export", "encode")
    return boxes, [Arrow(i, i + 1, verb) for i, verb in enumerate(verbs)]


def architecture() -> Drawing:
    """Six encoders, anchors, what is measured."""
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    halves = (
        ("EEG window", "32 anchors\non the scalp", BLUE, 0.0),
        ("BOLD window", "100 anchors\nin the brain", RED, 31.0),
    )
    for window, anchors, colour, x in halves:
        first = len(boxes)
        boxes += [Box(x + 6, 24, 18, 4, f"{window}\nchannels x time", colour), Box(x + 6, 17, 18, 4, anchors, colour)]
        boxes += [
            Box(x + 7.6 * i, 9, 6.8, 4.5, name, colour if i < 3 else GREY)
            for i, name in enumerate(("spatial\nencoder", "temporal\nencoder", "spectral\nencoder", "measured\nparts"))
        ]
        boxes += [Box(x + 7.6 * i, 2, 6.8, 3.4, "h and z", colour) for i in range(3)]
        arrows += [Arrow(first, first + 1)] + [Arrow(first + 1, first + i) for i in (2, 3, 4, 5)]
        arrows += [Arrow(first + i, first + i + 4) for i in (2, 3, 4)]
    end = len(boxes)
    boxes += [Box(0, -6, 60.6, 4, "features of a recording: h and z of six encoders, and what is measured", GREEN)]
    arrows += [Arrow(first + i, end) for first in (0, 9) for i in (5, 6, 7, 8)]
    return boxes, arrows


def recording() -> Drawing:
    """From a BIDS file to a row of the index."""
    texts = [
        ("BIDS folder of a site: files, sidecars, participants.tsv", BLUE),
        ("Found: a recording with subject, session, task, run", BLUE),
        ("Read in a process of its own, with limits of time and memory", SKY),
        ("Cleaned: filters, bad channels, units, positions", SKY),
        ("Sample: all recordings of one subject and session", GREEN),
        ("Shard: a tar file of samples, with checksums", GREEN),
        ("Index: one row for each recording", GREEN),
    ]
    boxes = chain(texts, 0, 42, 3.4, 2.2)
    boxes.append(Box(46, -16.8, 13, 9, "Refused:\nlisted with site,\nfile and reason", RED))
    return boxes, [*(Arrow(i, i + 1) for i in range(6)), Arrow(2, 7), Arrow(3, 7)]


def step() -> Drawing:
    """One step of training on two of many ranks."""
    wide = [
        ("Schedule: index, seed and step decide what is read", GREY),
        ("All ranks see z of the whole batch", ORANGE),
        ("DeepSpeed adds up the gradients of all ranks", ORANGE),
        ("The same update everywhere; at times a checkpoint", GREEN),
    ]
    heights = (31.6, 9.2, -2, -7.6)
    boxes = [Box(0, y, 46, 3.4, text, colour) for y, (text, colour) in zip(heights, wide, strict=True)]
    arrows = [Arrow(2, 3)]
    texts = ("reads its windows", "two views of each", "six encoders: h, z", "its share of the loss")
    for number, x in ((0, 0), (1, 24)):
        first = len(boxes)
        places = (26, 20.4, 14.8, 3.6)
        boxes += [Box(x, y, 22, 3.4, f"rank {number}: {text}", BLUE) for y, text in zip(places, texts, strict=True)]
        arrows += [Arrow(0, first), Arrow(first, first + 1), Arrow(first + 1, first + 2)]
        arrows += [Arrow(first + 2, 1), Arrow(1, first + 3), Arrow(first + 3, 2)]
    return boxes, arrows


def corpus() -> Drawing:
    """The files of a corpus."""
    boxes = [
        Box(0, 0, 22, 4.6, "index.json\nsettings, versions, totals", GREEN),
        Box(27, 5.6, 32, 4.6, "recordings-<hash>.arrow\none row for each recording", BLUE),
        Box(27, 0, 32, 4.6, "rejected-<hash>.jsonl, repairs-<hash>.jsonl\nrefused or repaired recordings", RED),
        Box(27, -5.6, 32, 4.6, "shards/<split>-<number>-<hash>.tar\nsamples: .npy arrays and .json", BLUE),
        Box(27, -11.2, 32, 4.6, "shards/<split>-<number>-<hash>.crc.npy\na checksum for each block", BLUE),
        Box(0, 5.6, 22, 4.6, "report.html\nto look at", SKY),
        Box(0, -11.2, 22, 4.6, ".build/: private names,\ndelete it first", RED),
    ]
    return boxes, [Arrow(0, i) for i in (1, 2, 3, 4)]


def negatives() -> Drawing:
    """What a row of the contrast is compared with: a square for each pair of six windows."""
    windows = [("A", 1), ("A", 1), ("A", 2), ("B", 3), ("B", 4), ("B", 4)]  # site, subject
    boxes = []
    for i, (site, subject) in enumerate(windows):
        boxes += [Box(-13, 25 - 5 * i, 12, 4.6, f"site {site}\nsubject {subject}", frame=False)]
        boxes += [Box(5 * i, 30, 4.6, 4.6, f"{site}\n{subject}", frame=False)]
        for j, (other_site, other) in enumerate(windows):
            colour, text = (ORANGE, "far") if site != other_site else (BLUE, "yes")
            if subject == other:
                colour, text = (GREEN, "pair") if i == j else (GREY, "no")
            boxes.append(Box(5 * j, 25 - 5 * i, 4.6, 4.6, text, colour))
    legend = [
        ("pair: the two views of one window, made alike", GREEN),
        ("no: another window of the same subject is left out", GREY),
        ("yes: another subject of the same site is a negative", BLUE),
        ("far: another site; left out with negatives: within_site", ORANGE),
    ]
    boxes += [Box(-13, -4.4 - 3.8 * i, 43, 3.2, text, colour) for i, (text, colour) in enumerate(legend)]
    return boxes, []


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    drawing.__name__: drawing for drawing in (overview, architecture, recording, step, corpus, negatives)
}


def write(folder: Path, names: Sequence[str] = tuple(DRAWINGS)) -> None:
    """Write ``<name>-light.svg`` and ``<name>-dark.svg`` of each drawing."""
    for name in names:
        for theme, ink in INK.items():
            draw(DRAWINGS[name](), ink, folder / f"{name}-{theme}.svg")


if __name__ == "__main__":
    write(IMAGES, ["overview"])
