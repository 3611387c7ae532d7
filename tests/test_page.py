"""The frame and the palette of all pages."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from mcsp.page import COLOURS, render

ROOT = Path(__file__).resolve().parents[1]
# What those see who lack the green or the red cones: linear RGB, Machado et al. 2009 (IEEE TVCG 15), severity 1.
DEUTERANOPIA = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
PROTANOPIA = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])


def test_the_frame_escapes_and_forbids_scripts_and_what_lies_elsewhere() -> None:
    page = render("frame.html.jinja", title="<b>\"'", footer="<script>alert(1)</script>")
    assert page.count("&lt;b&gt;&#34;&#39;") == 2 and "&lt;script&gt;alert(1)" in page and "<script" not in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none';") and "script" not in policy and "http" not in policy
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    with pytest.raises(UndefinedError, match="footer"):
        render("frame.html.jinja", title="a")


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour as it is seen."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.clip(seen @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all cones", "no green", "no red"])
def test_colours_are_told_apart_without_green_or_red_cones(seen: np.ndarray) -> None:
    """A difference of 2.3 is just noticeable in large areas; matplotlib's own green and red are 7.4 apart."""
    assert np.linalg.norm(lab("#2ca02c", DEUTERANOPIA) - lab("#d62728", DEUTERANOPIA)) < 8
    for a, b in combinations(COLOURS, 2):
        assert np.linalg.norm(lab(a, seen) - lab(b, seen)) > 15, (a, b)


def test_no_picture_has_colours_of_its_own() -> None:
    """Maps of heads keep red and blue, which this palette cannot span; the page's paper and lines are in its style."""
    own = re.compile(r"#[0-9a-fA-F]{3,6}\b|tab10|tab20|\bC\d\b.*color")
    found = []
    for folder in ("mcsp/evaluate", "mcsp/explain", "mcsp/export", "data_sharding/inspect", "launchers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = "\n".join(line for line in path.read_text().splitlines() if "_INK =" not in line)
            found += [f"{path.name}: {colour}" for colour in own.findall(text)]
    assert found == []
