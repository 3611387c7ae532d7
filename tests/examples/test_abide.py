"""The example of ABIDE, from files in the layout of nilearn's fetcher to a corpus in arbitrary units."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import abide
from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import KEY_VARIABLE, SCALE_FREE
from tests.conftest import SUBJECT_KEY

PEOPLE = {"Pitt_0050003": ("PITT", "1"), "Pitt_0050004": ("PITT", "2"), "UM_1_0050272": ("UM_1", "1")}


def test_the_files_of_nilearns_fetcher_become_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ABIDE_pcp/cpac/filt_global"
    folder.mkdir(parents=True)
    columns = ("SUB_ID", "SITE_ID", "FILE_ID", "DX_GROUP", "AGE_AT_SCAN", "SEX")
    with open(tmp_path / "ABIDE_pcp" / abide.PHENOTYPE, "w", newline="") as file:
        rows = [(name[-5:], site, name, group, 24.4, 1) for name, (site, group) in PEOPLE.items()]
        csv.writer(file).writerows([columns, *rows, ("50000", "PITT", "no_filename", 1, 20, 1)])
    for seed, name in enumerate([*PEOPLE, "UM_1_0099999"]):
        x_TP = 20 * np.random.default_rng(seed).standard_normal((60, 200))
        header = "\t".join(f"#{i}" for i in range(1, 201))
        np.savetxt(folder / f"{name}_rois_cc200.1D", x_TP, fmt="%.6g", delimiter="\t", header=header, comments="")
    places = np.random.default_rng(9).uniform(-60, 60, (200, 3)).round(1)
    table = "\n".join("\t".join(map(str, (i, *xyz))) for i, xyz in enumerate(places, 1))
    (tmp_path / "places.tsv").write_text(f"label\tx_mm\ty_mm\tz_mm\n{table}\n")
    monkeypatch.setenv(KEY_VARIABLE, SUBJECT_KEY)
    arguments = ["--abide", str(tmp_path), "--atlas", str(tmp_path / "places.tsv"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["abide.py", str(tmp_path / "out"), *arguments])
    assert abide.main() == 0
    out, errors = capsys.readouterr()
    assert "UM_1" in out and f"in no row of {abide.PHENOTYPE}: UM_1_0099999" in errors
    corpus = Corpus(tmp_path / "out/corpus")
    assert sorted((r.site, round(1 / r.sfreq, 3), r.unit) for r in corpus.recordings) == [
        ("Pitt", 1.5, SCALE_FREE), ("Pitt", 1.5, SCALE_FREE), ("UM_1", 2.0, SCALE_FREE)
    ]  # fmt: skip
    for recording in corpus.recordings:
        np.testing.assert_allclose(recording.positions_C3, places, atol=1e-3)
        assert corpus.participant(recording)["diagnosis"] in ("autism", "control")
    page = (tmp_path / "out/corpus/report.html").read_text()
    assert "200 parcels, in a.u." in page and "power [a.u.²/Hz]" in page and "Amplitude [% of the mean]" not in page
