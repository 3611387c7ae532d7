"""FeatureExtractor in scikit-learn's own machinery."""

import pickle
import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mcsp.data_sharding.bids.write import write_eeg, write_json, write_tsv
from mcsp.encode.eeg import encode_raw
from mcsp.encode.extractor import FeatureExtractor
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.encode.recording import EncodedRecording
from mcsp.evaluate.readout.harmonize import Combat
from mcsp.model.weights import write_pretrained

CHANNELS = ("Fp1", "Fp2", "C3", "C4", "O1", "O2")
SFREQ, SECONDS = 128.0, 12


def recordings(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """White noise with alpha over the back of the head in every other one, uV (N, C, T), and which."""
    rng = np.random.default_rng(0)
    x_NCT = 10 * rng.standard_normal((n, len(CHANNELS), round(SECONDS * SFREQ)))
    y_N = np.arange(n) % 2
    alpha_T = 40 * np.sin(2 * np.pi * 10 * np.arange(x_NCT.shape[2]) / SFREQ)
    x_NCT[y_N == 1, -2:] += alpha_T
    return x_NCT, y_N


@pytest.fixture
def extractor(export_dir: Path) -> FeatureExtractor:
    return FeatureExtractor(export_dir, sfreq=SFREQ, channels=CHANNELS, windows_per_recording=1)


def test_arrays_raws_and_files_give_the_same_features(extractor: FeatureExtractor, tmp_path: Path) -> None:
    x_NCT, _ = recordings(3)
    raws = [mne.io.RawArray(x * 1e-6, mne.create_info(list(CHANNELS), SFREQ, "eeg"), verbose="ERROR") for x in x_NCT]
    paths = [
        write_eeg(tmp_path, str(i), "rest", x_CT, CHANNELS, {"SamplingFrequency": SFREQ})
        for i, x_CT in enumerate(x_NCT)
    ]
    expected = extractor.fit_transform(x_NCT)
    assert expected.shape == (3, len(extractor.get_feature_names_out()))
    np.testing.assert_allclose(extractor.transform(list(x_NCT)), expected)
    np.testing.assert_allclose(extractor.transform(raws), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(extractor.transform(paths), expected, rtol=0.02, atol=0.02)  # EDF of 0.05 uV
    assert "12.0 s at 128 Hz" in str(extractor.encode(paths[0]).report)


def test_names_say_the_part_of_the_features(extractor: FeatureExtractor, pretrained: PretrainedMCSP) -> None:
    names = extractor.get_feature_names_out()
    widths = pretrained.feature_widths("eeg")
    assert len(names) == len(set(names)) == sum(widths.values())
    for part, width in widths.items():
        assert sum(name.startswith(f"eeg_{part}_") and name[len(f"eeg_{part}_") :].isdigit() for name in names) == width


def test_a_table_with_names_comes_out_where_it_is_asked_for(extractor: FeatureExtractor) -> None:
    table = extractor.set_output(transform="pandas").fit_transform(recordings(2)[0])
    assert list(table.columns) == list(extractor.get_feature_names_out())


LAB_ONLY = """
import sys
class Refuse:
    names = {"ray", "webdataset", "deepspeed", "triton", "pyarrow", "isal", "pyriemann", "tensorboard"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"import of {name}, which the lab extra does not have")
sys.meta_path.insert(0, Refuse())
import numpy as np
from mcsp.encode.extractor import FeatureExtractor
from mcsp.evaluate.splits import k_fold
from mcsp.encode.window_classifier import WindowClassifier
rng = np.random.default_rng(0)
print(np.isfinite(FeatureExtractor(sys.argv[1]).transform([sys.argv[2]])).all())
bold = FeatureExtractor(sys.argv[1], "fmri", t_r=2.0, parcellation=rng.uniform(-60, 60, (8, 3)))
print(np.isfinite(bold.transform(1000 + rng.standard_normal((1, 40, 8)))).all())
"""


def test_the_lab_extra_is_enough(export_dir: Path, tmp_path: Path) -> None:
    path = write_eeg(tmp_path, "1", "rest", recordings(1)[0][0], CHANNELS, {"SamplingFrequency": SFREQ})
    command = [sys.executable, "-c", LAB_ONLY, str(export_dir), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]


def test_it_is_cloned_and_pickled_without_weights(extractor: FeatureExtractor) -> None:
    x_NCT, _ = recordings(1)
    expected = extractor.fit_transform(x_NCT)
    copy = clone(extractor)
    assert copy.get_params() == extractor.get_params()
    assert not hasattr(copy, "feature_names_")
    stored = pickle.dumps(extractor)
    assert len(stored) < 200_000
    np.testing.assert_array_equal(pickle.loads(stored).transform(x_NCT), expected)


def test_sites_are_routed_through_a_pipeline_to_the_step_that_wants_them(extractor: FeatureExtractor) -> None:
    x_NCT, y_N = recordings()
    sites = np.array(["a", "b"])[np.arange(12) // 2 % 2]
    x_NCT[sites == "b"] *= 3  # an amplifier of another gain
    features_NF = extractor.fit_transform(x_NCT)
    with config_context(enable_metadata_routing=True):
        combat = Combat().set_fit_request(sites=True).set_transform_request(sites=True)
        pipeline = make_pipeline(extractor, combat, StandardScaler(), LogisticRegression(C=0.1))
        pairs = np.arange(12) // 4
        params = {"sites": sites, "groups": pairs}
        found = cross_validate(
            pipeline, x_NCT, y_N, cv=GroupKFold(3), params=params, return_estimator=True, return_indices=True
        )
        folds = list(zip(found["estimator"], found["indices"]["train"], found["indices"]["test"], strict=True))
        scores = [fold.decision_function(x_NCT[test], sites=sites[test]) for fold, _, test in folds]
        accuracy = [fold.score(x_NCT[test], y_N[test], sites=sites[test]) for fold, _, test in folds]
        with pytest.raises(TypeError, match="sites"):  # nobody asked for them
            cross_validate(make_pipeline(extractor, LogisticRegression()), x_NCT, y_N, params=params)
        named = pipeline[:2].set_output(transform="pandas").fit_transform(x_NCT, sites=sites)
    assert list(named.columns) == list(extractor.get_feature_names_out())
    np.testing.assert_array_equal(found["test_score"], accuracy)
    for (_, train, test), score in zip(folds, scores, strict=True):
        assert set(pairs[train]).isdisjoint(pairs[test])
        known = Combat().fit(features_NF[train], sites=sites[train])
        after = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
        after.fit(known.transform(features_NF[train], sites[train]), y_N[train])
        expected = after.decision_function(known.transform(features_NF[test], sites[test]))
        np.testing.assert_allclose(score, expected, rtol=1e-6)


@pytest.mark.slow  # each process imports everything anew
def test_a_pipeline_is_cross_validated_in_two_processes(extractor: FeatureExtractor) -> None:
    x_NCT, y_N = recordings()
    pipeline = make_pipeline(extractor, StandardScaler(), LogisticRegression(C=0.1))
    groups_N = np.arange(len(y_N)) // 2
    scores = cross_val_score(pipeline, x_NCT, y_N, groups=groups_N, cv=GroupKFold(3), n_jobs=2)
    assert scores.mean() > 0.8
    as_list = cross_val_score(pipeline, list(x_NCT), y_N, groups=groups_N, cv=GroupKFold(3))
    np.testing.assert_array_equal(as_list, scores)


def test_a_grid_search_may_vary_windows_and_classifier(extractor: FeatureExtractor) -> None:
    x_NCT, y_N = recordings(8)
    pipeline = make_pipeline(extractor, StandardScaler(), PCA(3), LogisticRegression())
    grid = {"featureextractor__window_seconds": [4.0, 8.0], "logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(x_NCT, y_N)
    assert search.best_params_.keys() == grid.keys()
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(x_NCT).shape == (8,)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a recording is encoded."""
    names: list[str] = []

    def counting(model: PretrainedMCSP, raw: object, *arguments: object) -> EncodedRecording:
        names.append(type(raw).__name__)
        return encode_raw(model, raw, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("mcsp.encode.extractor.encode_raw", counting)
    return names


def test_a_grid_search_with_memory_encodes_every_recording_once(
    extractor: FeatureExtractor, tmp_path: Path, encoded: list[str]
) -> None:
    """A pipeline's own memory keeps what training parts became; test parts are transformed for every setting."""
    x_NCT, y_N = recordings(8)
    grid = {"logisticregression__C": [0.1, 1.0, 10.0]}
    classify = StandardScaler(), LogisticRegression()

    def search(first: FeatureExtractor, memory: Path | None = None) -> GridSearchCV:
        pipeline = make_pipeline(first, *classify, memory=None if memory is None else str(memory))
        return GridSearchCV(pipeline, grid, cv=2).fit(x_NCT, y_N)

    plain = search(extractor).cv_results_["mean_test_score"]
    assert (
        len(encoded) == 3 * (8 + 8) + 8
    )  # three settings, each fold once as training and once as test; all at the end
    encoded.clear()
    of_pipeline = search(extractor, tmp_path / "pipeline").cv_results_["mean_test_score"]
    assert len(encoded) == 8 + 3 * 8 + 8
    encoded.clear()
    kept = clone(extractor).set_params(memory=tmp_path / "features")
    of_extractor = search(kept).cv_results_["mean_test_score"]
    assert len(encoded) == 8
    np.testing.assert_array_equal(of_pipeline, plain)
    np.testing.assert_array_equal(of_extractor, plain)
    both = search(kept, tmp_path / "both")
    assert len(encoded) == 8
    np.testing.assert_array_equal(both.predict(x_NCT), search(extractor).predict(x_NCT))


def test_what_changes_the_features_is_encoded_again(
    extractor: FeatureExtractor, pretrained: PretrainedMCSP, tmp_path: Path, encoded: list[str]
) -> None:
    x_NCT, _ = recordings(1)
    write_json(tmp_path / "dataset_description.json", {"Name": "clinic", "BIDSVersion": "1.10.0"})
    path = write_eeg(tmp_path, "1", "rest", x_NCT[0], CHANNELS, {"SamplingFrequency": SFREQ})
    raw = mne.io.read_raw_edf(path, verbose="ERROR")  # its samples are still in the file
    write_pretrained(pretrained, model := tmp_path / "model", pretrained.preprocessing)
    extractor = clone(extractor).set_params(memory=tmp_path / "memory", model_dir=model)

    def count(recording: object, **change: object) -> int:
        before = len(encoded)
        clone(extractor).set_params(**change).transform([recording])
        return len(encoded) - before

    for recording in (path, raw, x_NCT[0]):
        assert [count(recording), count(recording)] == [1, 0]
    assert count(str(path)) == 0
    assert count(path, line_hz=50) == 1 and count(path, window_seconds=4.0) == 1
    rows = [(name, "EEG", "bad" if name == "C3" else "good") for name in CHANNELS]
    write_tsv(path.with_name("sub-1_task-rest_channels.tsv"), ("name", "type", "status"), rows)
    assert count(path) == 1
    assert count(x_NCT[0] + 1e-9) == 1
    write_eeg(tmp_path, "1", "rest", 2 * x_NCT[0], CHANNELS, {"SamplingFrequency": SFREQ})
    assert count(path) == 1
    assert count(raw) == 1
    write_pretrained(pretrained, model, {**pretrained.preprocessing, "note": "another export at the same place"})
    assert count(path) == 1 and count(path) == 0


def test_bold_arrays(export_dir: Path, pretrained: PretrainedMCSP) -> None:
    rng = np.random.default_rng(1)
    places = rng.uniform(-60, 60, (10, 3))
    x_NTP = 1000 + 5 * rng.standard_normal((2, 40, 10)).cumsum(axis=1)
    extractor = FeatureExtractor(export_dir, "fmri", t_r=2.0, parcellation=places)
    found = extractor.fit_transform(x_NTP)
    np.testing.assert_array_equal(found[1], pretrained.encode_bold(x_NTP[1], 2.0, places).features)
    assert clone(extractor).transform(list(x_NTP)).shape == found.shape


def test_a_bad_recording_is_named_or_becomes_a_row_of_nan(extractor: FeatureExtractor) -> None:
    x_NCT, _ = recordings(3)
    x_NCT[1] = np.nan
    with pytest.raises(ValueError, match=r"recording 1: Raw: 6 of 6 channels are bad \(6 non-finite\)"):
        extractor.fit_transform(x_NCT)
    found = clone(extractor).set_params(on_error="nan").fit_transform(x_NCT)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]


def test_files_that_cannot_be_read_cost_their_own_row(extractor: FeatureExtractor, tmp_path: Path) -> None:
    """With a memory too, which looks at the files before they are read."""
    bad = [
        tmp_path / name for name in ("dangling.edf", "loop.edf", "empty.set", "zeros.fif", "deep/deep_eeg.edf", "no")
    ]
    bad[0].symlink_to("nowhere/x.edf")
    bad[1].symlink_to(bad[1].name)
    bad[2].touch()
    bad[3].write_bytes(bytes(5000))
    root = tmp_path / "deep"
    path = write_eeg(root, "1", "rest", recordings(1)[0][0], CHANNELS, {"SamplingFrequency": SFREQ})
    sound = write_eeg(root, "2", "rest", recordings(1)[0][0], CHANNELS, {"SamplingFrequency": SFREQ})
    (root / "dataset_description.json").write_text("{}")
    path.with_suffix(".json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    bad[4] = path
    for memory in (None, tmp_path / "memory"):
        found = clone(extractor).set_params(on_error="nan", memory=memory).fit_transform([*bad, sound])
        assert np.isnan(found).all(axis=1).tolist() == [True] * 6 + [False]
    with pytest.raises(ValueError, match=r"recording 0: dangling\.edf: a link to nowhere/x\.edf, which is absent"):
        extractor.fit_transform(bad)


@pytest.mark.parametrize(
    ("change", "X", "pattern"),
    [
        ({"sfreq": None}, np.zeros((1, 6, 2000)), "expected sfreq in Hz"),
        ({"channels": None}, np.zeros((1, 6, 2000)), "expected channel names or positions_mm"),
        ({"channels": ("Cz",)}, np.zeros((1, 6, 2000)), "1 channel names, expected one for each of 6 rows"),
        ({}, np.zeros((6, 2000)), r"expected recordings of shape \(N, channels, time samples\), found \(6, 2000\)"),
        ({}, "recording.edf", "put it into a list"),
        ({"modality": "meg"}, [], r"modality: expected one of \['fmri', 'eeg'\], found 'meg'"),
        ({"on_error": "ignore"}, [], "on_error: expected 'raise' or 'nan', found 'ignore'"),
        ({"model_dir": "nowhere"}, [], "nowhere: expected an exported model"),
    ],
)
def test_mistakes(extractor: FeatureExtractor, change: dict[str, object], X: object, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        clone(extractor).set_params(**change).fit_transform(X)


def test_no_recordings_give_no_rows(extractor: FeatureExtractor) -> None:
    assert extractor.fit_transform([]).shape == (0, len(extractor.get_feature_names_out()))
