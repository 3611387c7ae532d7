"""README holds: its Python prints what it says, its commands and links exist, its picture is what the code draws."""

import contextlib
import importlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mcsp.data_sharding.bids.write import write_eeg
from mcsp.data_sharding.demo.simulate import simulate_subject
from mcsp.data_sharding.demo.sites import SIMULATED_A

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MONTAGE = ("Fz", "F3", "F4", "C3", "Cz", "C4", "P3", "Pz", "P4", "Oz")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_python_prints_what_the_readme_shows(
    export_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = replace(SIMULATED_A, channels=MONTAGE, seconds=60.0)
    sidecar = {"SamplingFrequency": site.eeg_sfreq, "PowerLineFrequency": site.line_hz, "EEGReference": "n/a"}
    recording = write_eeg(tmp_path, "01", "rest", simulate_subject(site, 1).eeg_uv_CT, MONTAGE, sidecar)
    (recording.parent / "model").symlink_to(export_dir)
    monkeypatch.chdir(recording.parent)
    (code,), (shown,) = blocks("python"), blocks("text")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == shown


def test_the_commands_are_targets_and_the_tests_are_those_of_continuous_integration() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"setup", "demo", "test", "docs"} <= named <= targets
    assert {"make test", "make docs"} <= set((ROOT / ".ci/run").read_text().splitlines())


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)|(?:src|srcset)=\"([^\"]+)\"", README)
    places = [place for pair in links for place in pair if place and not place.startswith("https://")]
    assert len(places) > 10 and not [place for place in places if not (ROOT / place).exists()]


def test_one_screen_decides() -> None:
    assert len(README.split()) <= 600


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_is_what_the_code_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theme: str) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    pictures = importlib.import_module("pictures")
    pictures.draw(pictures.overview(), pictures.INK[theme], tmp_path / "drawn.svg")
    drawn = (tmp_path / "drawn.svg").read_text()
    assert drawn == (ROOT / f"docs/images/overview-{theme}.svg").read_text()
    points = re.search(r'<svg [^>]*width="([\d.]+)pt"', drawn)
    assert points and float(points[1]) * 96 / 72 <= 358, "a phone of 390 pixels would make its letters smaller"
