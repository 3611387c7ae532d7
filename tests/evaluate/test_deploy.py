"""A classifier in a folder says of raw files what was said of the corpus; calibration and threshold as defined.

Covers: mcsp/encode/deployed.py, mcsp/encode/files.py, mcsp/commands/recordings.py
"""

import csv
import json
import shutil
from pathlib import Path

import mne
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import expit, softmax

import mcsp
from mcsp.commands.main import run
from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.deployed import LoadedClassifier, _chance, chosen, skill_in_words
from mcsp.encode.files import find_files, modality_of
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.evaluate.deploy import (
    _held_out,
    best_threshold,
    calibrate,
    calibrate_number,
    deploy_probe,
    interval_of,
)
from mcsp.evaluate.features import learned_parts, measured_parts
from mcsp.evaluate.units import Labelled, read_labels
from mcsp.model.weights import write_sums

CUT = {"windows_per_recording": 2, "window_seconds": {"eeg": 10.0, "fmri": 30.0}}


@pytest.fixture(scope="module")
def labelled(corpus_dir: Path) -> Labelled:
    return read_labels(Corpus(corpus_dir), "diagnosis")


@pytest.fixture(scope="module")
def parts(corpus_dir: Path, pretrained: PretrainedMCSP, labelled: Labelled) -> dict:
    corpus, config = Corpus(corpus_dir), EvaluateConfig(
        model_dir=Path("model"), corpus_dir=corpus_dir, out_dir=Path("out"), **CUT
    )  # fmt: skip
    learned = learned_parts(pretrained, corpus, labelled.units, config, "learned")
    measured = measured_parts(pretrained, corpus, labelled.units, config)
    return {m: {**learned[m], **measured[m]} for m in ("eeg", "fmri")}


@pytest.fixture(scope="module")
def folder(
    corpus_dir: Path,
    pretrained: PretrainedMCSP,
    labelled: Labelled,
    parts: dict,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("deployed")
    config = EvaluateConfig(model_dir=Path("model"), corpus_dir=corpus_dir, out_dir=out, folds=4, **CUT)
    assert deploy_probe(config, pretrained, labelled, parts, {"overlap": "None of them."}) == []
    return out / "classifier"


def files(corpus_dir: Path, pattern: str) -> list[Path]:
    return sorted((corpus_dir.parent / "bids").glob(f"simulated-a/sub-*/{pattern}"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_raw_files_are_scored_as_their_units_in_the_corpus(
    folder: Path, corpus_dir: Path, labelled: Labelled, parts: dict, pretrained: PretrainedMCSP
) -> None:
    """A corpus hides who is who, so the scores of a site are compared as a whole."""
    classifier = mcsp.load_classifier(folder)
    assert classifier.classes == labelled.classes
    for modality, pattern in (("eeg", "eeg/*_eeg.edf"), ("fmri", "func/*_timeseries.tsv")):
        of_site = [i for i, site in enumerate(labelled.sites) if site == "simulated-a"]
        x_NF = np.hstack([parts[modality][name] for name in pretrained.feature_widths(modality)])[of_site]
        p_NO = softmax([classifier.heads[modality].scores(x_F) for x_F in x_NF], axis=1)
        found = list(map(classifier.predict_or_tell, files(corpus_dir, pattern)))
        assert [p.error for p in found] == [""] * 16
        p_N = [p.probabilities[labelled.classes[1]] for p in found]
        np.testing.assert_allclose(np.sort(p_N), np.sort(p_NO[:, 1]), atol=0.01)
        threshold = classifier.heads[modality].facts["threshold"]
        assert [p.label for p in found] == [labelled.classes[int(p >= threshold)] for p in p_N]
        assert all(0 <= p.closer <= 100 and p.distance is not None for p in found if p.closer is not None)
        assert not any("missing" in flag or "unlike" in flag for p in found[:1] for flag in p.flags)


def test_a_recording_that_differs_from_the_training_is_flagged(folder: Path, corpus_dir: Path) -> None:
    raw = mne.io.read_raw_edf(files(corpus_dir, "eeg/*_eeg.edf")[0], preload=True, verbose="ERROR")
    classifier = mcsp.load_classifier(folder, line_hz=50.0)
    usual = classifier.predict(raw)
    montages = classifier.heads["eeg"].facts["channels"]
    assert montages["simulated-a"] == raw.ch_names and not set(montages["simulated-b"]) & set(raw.ch_names)
    few = classifier.predict(raw.copy().drop_channels(["Fp1", "O2"]))
    assert f"2 of {len(raw.ch_names)} channels of simulated-a are missing: Fp1, O2" in few.flags
    noise = raw.copy()
    noise._data += 4e-5 * np.random.default_rng(0).standard_normal(noise._data.shape)  # white, unlike any brain
    noisy = classifier.predict(noise)
    assert usual.distance is not None and noisy.distance is not None and noisy.distance > 1.5 * usual.distance
    assert noisy.closer == 100 and any(flag.startswith("unlike the training data") for flag in noisy.flags)


def test_beyond_all_held_out_units_there_is_no_probability_and_no_interval(
    folder: Path, corpus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the 96th percentile a recording is flagged; beyond the last one nothing says how sure a class is."""
    file, copy = files(corpus_dir, "eeg/*_eeg.edf")[0], tmp_path / "classifier"
    distance = LoadedClassifier(folder).predict(file).distance
    assert distance is not None
    facts = json.loads((folder / "classifier.json").read_text())
    shutil.copytree(folder, copy)
    for furthest, known in ((distance + 0.01, True), (distance - 0.01, False)):
        for number in (False, True):
            facts["heads"]["eeg"]["distances"] = [0.0] * 20 + [furthest]
            facts["task"]["kind"] = "regression" if number else "classification"
            for head in facts["heads"].values():
                head |= {"interval": {"coverage": 0.9, "half_width": 2.0}, "range": [-100, 100]}
            (copy / "classifier.json").write_text(json.dumps(facts))
            write_sums(copy)
            assert run(["predict", str(copy), str(file), "--out", str(tmp_path / "table.tsv")]) == 0
            (row,) = table(tmp_path / "table.tsv")
            told = capsys.readouterr().err
            sure = ["low", "high"] if number else ["probability", *(f"p({name})" for name in facts["task"]["classes"])]
            assert all((row[name] != "n/a") == known for name in sure) and row["flags"].startswith("unlike")
            assert row["value" if number else "class"] != "n/a" and (float(row["closer"]) < 100) == known
            assert ("how sure it is cannot be known" in told) != known
            assert (" to " in told.split(";")[0] if number else "probability" in told) == known


def test_the_command_writes_a_row_for_every_recording_with_a_class_or_a_reason(
    folder: Path, corpus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bold = files(corpus_dir, "eeg/*_eeg.edf")[0], files(corpus_dir, "func/*_timeseries.tsv")[0]
    (tmp_path / "cut.edf").write_bytes(good.read_bytes()[:200])
    (tmp_path / "notes.docx").touch()
    named = [good, bold, tmp_path / "cut.edf", tmp_path / "notes.docx", tmp_path / "none.edf"]
    out, as_folder = tmp_path / "table.tsv", tmp_path / "folder.tsv"
    as_folder.mkdir()
    assert run(["predict", str(folder), *map(str, named), "--out", str(out)]) == 0
    rows = table(out)
    assert [row["recording"] for row in rows] == [str(path) for path in named]
    classes = mcsp.load_classifier(folder).classes
    for row, modality in zip(rows[:2], ("eeg", "fmri"), strict=True):
        assert row["modality"] == modality and row["class"] in classes and row["error"] == "n/a"
        assert float(row["probability"]) == pytest.approx(float(row[f"p({row['class']})"]))
        assert sum(float(row[f"p({name})"]) for name in classes) == pytest.approx(1, abs=1e-5)
    told = capsys.readouterr().err.splitlines()
    reasons = ("a header that begins", "expected a file of EEG or BOLD", "no such file")
    for row, part in zip(rows[2:], reasons, strict=True):
        assert row["error"].startswith(part) and row["class"] == row["distance"] == "n/a"
        assert f"{row['recording']}: {row['error']}" in told  # the name once
    assert [row["modality"] for row in rows[2:]] == ["eeg", "n/a", "eeg"]
    assert all("trained on simulated recordings: simulated-a, simulated-b" in row["flags"] for row in rows[:2])
    assert run(["predict", str(folder), str(tmp_path / "none.edf"), "--out", str(out)]) == 1
    assert run(["predict", str(folder), str(good), "--out", str(tmp_path / "a" / "b.tsv")]) == 2
    assert "expected a file in a folder that is there" in capsys.readouterr().err
    for verb, place in (("predict", folder), ("encode", folder / "encoder")):
        assert run([verb, str(place), str(good), "--out", str(as_folder)]) == 2  # before a recording is read
        assert capsys.readouterr().err.startswith("error: [Errno 21] Is a directory")


def test_features_go_into_a_table_or_arrays(export_dir: Path, corpus_dir: Path, tmp_path: Path) -> None:
    named = [
        *files(corpus_dir, "eeg/*_eeg.edf")[:2],
        tmp_path / "none.edf",
        *files(corpus_dir, "func/*_timeseries.tsv")[:1],
    ]
    words = ["encode", str(export_dir), *map(str, named), "--windows-per-recording", "1", "--out"]
    assert run([*words, str(tmp_path / "features.npz")]) == 0
    assert run([*words, str(tmp_path / "features.tsv")]) == 0
    with np.load(tmp_path / "features.npz", allow_pickle=False) as found:
        assert found["eeg_rows"].tolist() == [0, 1] and found["fmri_rows"].tolist() == [3]
        expected = mcsp.from_pretrained(export_dir).encode_raw(named[1], windows_per_recording=1).features  # type: ignore[attr-defined]
        np.testing.assert_allclose(found["eeg_features"][1], expected, rtol=1e-6)
        rows = table(tmp_path / "features.tsv")
        values = [float(rows[1][name]) for name in found["eeg_names"]]
        np.testing.assert_allclose(values, found["eeg_features"][1], rtol=1e-12)
        assert rows[0][str(found["fmri_names"][0])] == "n/a" and "no such file" in rows[2]["error"]


def test_files_are_found_by_name_pattern_folder_and_dataset(corpus_dir: Path, tmp_path: Path) -> None:
    site = corpus_dir.parent / "bids" / "simulated-a"
    assert len(find_files([site])) == 32
    (tmp_path / "b.edf").touch()
    (tmp_path / "a.fif").touch()
    (tmp_path / "._b.edf").touch()  # of macOS
    (tmp_path / "notes.txt").touch()
    assert [p.name for p in find_files([tmp_path, tmp_path / "b.edf"])] == ["a.fif", "b.edf"]
    assert [p.name for p in find_files([tmp_path / "*.edf", tmp_path / "c.bdf"])] == ["b.edf", "c.bdf"]
    with pytest.raises(ValueError, match="expected recordings, found none"):
        find_files([tmp_path / "*.set"])
    assert (modality_of("x.EDF"), modality_of("x_bold.nii.gz")) == ("eeg", "fmri")
    with pytest.raises(ValueError, match="say the modality"):
        modality_of(np.zeros((4, 100)))


def test_a_changed_head_encoder_or_version_is_refused(folder: Path, tmp_path: Path) -> None:
    def changed(name: str, content: bytes) -> Path:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        return copy

    head = (folder / "head.safetensors").read_bytes()
    facts = json.loads((folder / "classifier.json").read_text())
    for name, content, message in (
        ("head.safetensors", head[:-8] + b"\0" * 8, "head.safetensors: damaged or changed"),
        ("encoder/SHA256SUMS", b"", "expected the encoder that the head was trained on"),
        ("classifier.json", json.dumps({**facts, "format_version": 9}).encode(), "expected format_version 2, found 9"),
        ("classifier.json", json.dumps({**facts, "more": 1}).encode(), "classifier.json: damaged or changed"),
    ):
        with pytest.raises(ValueError, match=message):
            LoadedClassifier(changed(name, content))
    with pytest.raises(ValueError, match=r"expected a classifier, a folder with classifier\.json"):
        LoadedClassifier(tmp_path)
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".joblib")]
    assert "diagnosis" in (folder / "README.md").read_text()


def test_a_folder_of_others_that_lacks_something_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def with_changes(arrays: dict, facts: dict) -> Path:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        kept = {name: x for name, x in {**load_file(copy / "head.safetensors"), **arrays}.items() if x is not None}
        save_file(kept, copy / "head.safetensors")
        described = json.loads((copy / "classifier.json").read_text())
        described["heads"]["eeg"] |= facts.pop("eeg", {})
        (copy / "classifier.json").write_text(json.dumps({**described, **facts}))
        write_sums(copy)
        return copy

    task = {"kind": "classification", "label": "x", "classes": 5}
    for arrays, facts in (
        ({"eeg.weight_OF": None}, {}), ({"eeg.bias_O": np.zeros(3)}, {}), ({"eeg.scale_F": np.full(4384, np.nan)}, {}),
        ({}, {"eeg": {"distances": "far"}}), ({}, {"eeg": {"skill": None}}), ({}, {"task": task}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"the head of \w+ is not whole \(.*write it again"):
            LoadedClassifier(with_changes(arrays, facts))
    short = {f"eeg.{name}": np.zeros(7) for name in ("mean_F", "scale_F", "centre_F", "spread_F")}
    narrow = LoadedClassifier(with_changes({**short, "eeg.weight_OF": np.zeros((2, 7))}, {}))
    assert "a head on 7 features, the encoder of eeg has" in narrow.predict_or_tell("a.edf").error
    (tmp_path / "0" / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="SHA256SUMS is missing"):
        LoadedClassifier(tmp_path / "0")


def test_a_length_or_number_that_nothing_can_have_is_refused_before_the_work(
    folder: Path, corpus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(files(corpus_dir, "eeg/*_eeg.edf")[0]), tmp_path / "table.tsv"
    for words in (["--windows-per-recording", "0"], ["--window-seconds", "nan"], ["--min-seconds", "-1"]):
        assert run(["encode", str(folder / "encoder"), file, "--out", str(out), *words]) == 2
        assert "expected a positive number" in capsys.readouterr().err and not out.exists()
    assert run(["predict", str(folder), file, "--out", str(out), "--min-seconds", "nan"]) == 2


def test_a_head_that_is_no_better_than_chance_says_so(labelled: Labelled) -> None:
    y_N = labelled.y_N
    for score_N, says in ((y_N + 0.0, "AUROC 1.00 (1.00 to 1.00)"), (np.arange(len(y_N)) * 1.0, "AUROC")):
        skill = _held_out(np.stack([-score_N, score_N], axis=1), labelled)["skill"]
        flags = _chance(skill)
        assert says in skill_in_words(skill) and len(flags) == (says == "AUROC")
        assert all(flag.startswith("not shown to be better than chance: AUROC 0.") for flag in flags)
    assert _chance({"measure": "r", "chance": 0.0, "estimate": None}) == [
        "not shown to be better than chance: r unknown on held-out units"
    ]


def test_calibration_finds_the_slope_and_shift_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    score_N = rng.standard_normal(20_000)
    y_N = (rng.random(20_000) < expit(2.5 * score_N - 1)).astype(int)
    found = calibrate(np.stack([-score_N / 2, score_N / 2], axis=1), y_N)
    assert found["slope"] == pytest.approx(2.5, abs=0.1)
    assert found["bias"][1] - found["bias"][0] == pytest.approx(-1, abs=0.1)
    # Scores that hold the classes apart, or say the contrary, give no certainty and no reversal.
    apart = calibrate(np.array([[1.0, -1], [1, -1], [-1, 1], [-1, 1]]), np.array([0, 0, 1, 1]))
    assert softmax(apart["slope"] * np.array([1.0, -1]) + apart["bias"])[0] == pytest.approx(0.75, abs=1e-3)
    against = calibrate(np.stack([score_N, -score_N], axis=1), y_N)
    assert against["slope"] == pytest.approx(0, abs=1e-6)
    assert softmax(against["bias"])[1] == pytest.approx(y_N.mean(), abs=1e-3)
    # Several classes, one of them rare.
    logit_NO = rng.standard_normal((20_000, 3)) + np.array([0, 0, -2])
    classes_N = (logit_NO + rng.gumbel(size=logit_NO.shape)).argmax(axis=1)
    several = calibrate(logit_NO / 3 + 1, classes_N)
    assert several["slope"] == pytest.approx(3, abs=0.15)
    np.testing.assert_allclose(several["bias"], 0, atol=0.1)


def test_a_number_is_calibrated_and_its_interval_holds_nine_of_ten_new_ones() -> None:
    rng = np.random.default_rng(0)
    score_N = rng.normal(50, 10, 4000)
    y_N = 2 * score_N - 30 + rng.standard_t(4, 4000)
    held, error_N = calibrate_number(score_N[:60], y_N[:60])
    assert held["slope"] == pytest.approx(2, abs=0.05) and held["bias"][0] == pytest.approx(-30, abs=3)
    others = np.arange(60) != 7
    again, _ = calibrate_number(score_N[:60][others], y_N[:60][others])
    assert error_N[7] == pytest.approx(y_N[7] - again["slope"] * score_N[7] - again["bias"][0])
    inside = []
    for first in range(0, 4000, 100):  # of 60 units the interval, of 40 others whether it holds them
        known, new = slice(first, first + 60), slice(first + 60, first + 100)
        line, error_N = calibrate_number(score_N[known], y_N[known])
        half = interval_of(error_N)["half_width"]
        inside.append(np.abs(y_N[new] - line["slope"] * score_N[new] - line["bias"][0]) <= half)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)
    for useless_N in (-score_N, np.full(4000, 3.0)):
        flat, error_N = calibrate_number(useless_N, y_N)
        assert flat["slope"] == 0 and flat["bias"] == [pytest.approx(y_N.mean())]
        assert error_N.std() == pytest.approx(y_N.std(), rel=1e-3)


def test_the_threshold_has_the_largest_balanced_accuracy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        y_N = rng.permutation([0] * 9 + [1] * 5)
        p_N = np.round(expit(rng.standard_normal(14) + y_N), 2)

        def balanced(t: float, p_N: np.ndarray = p_N, y_N: np.ndarray = y_N) -> float:
            return float((p_N[y_N == 1] >= t).mean() + (p_N[y_N == 0] < t).mean()) / 2

        best = max(balanced(t) for t in np.linspace(0, 1.001, 2003))
        assert balanced(best_threshold(p_N, y_N)) == pytest.approx(best)
    assert best_threshold(np.array([0.1, 0.2, 0.7, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(0.45)
    assert chosen({"no": 0.6, "yes": 0.4}, 0.35) == "yes" and chosen({"a": 0.3, "b": 0.3, "c": 0.4}, None) == "c"
