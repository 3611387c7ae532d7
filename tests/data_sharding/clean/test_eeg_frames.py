"""Positions in frames that are not what they are called: another nose, a sphere, landmarks that say it."""

import json
from pathlib import Path

import mne
import numpy as np
import pytest
import scipy.io

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import ref_of_file
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_tsv
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.eeg_channels import _misplaced, standard_positions_mm
from mcsp.data_sharding.clean.eeg_frames import MM_PER_UNIT, TO_HEAD, around_head, by_landmarks, on_sphere
from mcsp.data_sharding.clean.recording import CleanRecording

KNOWN = ["Fp1", "Fp2", "F7", "F8", "C3", "C4", "Cz", "P3", "P4", "T7", "T8", "O1", "O2"]
NET = [f"E{i}" for i in range(1, len(KNOWN) + 1)]
TEN = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "T7", "T8"]
PLACES = np.array([standard_positions_mm()[name.lower()][1] for name in KNOWN])
SPHERE = PLACES - [0, 15, 40]
SPHERE *= 85 / np.linalg.norm(SPHERE, axis=1, keepdims=True)


def eeg_uv() -> np.ndarray:
    t = np.arange(20 * 250) / 250
    phases = np.arange(len(KNOWN))[:, None]
    return 25 * np.sin(2 * np.pi * 10 * t + phases) + np.random.default_rng(0).standard_normal((len(KNOWN), len(t)))


def read(path: Path) -> CleanRecording:
    return read_eeg(ref_of_file(path, "eeg"), EegConfig(), min_seconds=10)


def write_set(path: Path, xyz: np.ndarray, nose: str) -> Path:
    """A net of EEGLAB whose names say nothing, with places in EEGLAB's axes."""
    kinds = [("labels", "O"), ("X", "f8"), ("Y", "f8"), ("Z", "f8"), ("type", "O")]
    places = np.array([(name, *row, "EEG") for name, row in zip(NET, xyz, strict=True)], dtype=kinds)
    nothing = {n: np.array([]) for n in ("icaweights", "icasphere", "icawinv", "icaact", "event", "urevent", "epoch")}
    content = {
        "setname": "x", "nbchan": len(NET), "trials": 1, "pnts": 5000, "srate": 250.0, "xmin": 0.0, "xmax": 20.0,
        "chanlocs": places, "chaninfo": {"nosedir": nose}, "ref": "common", "data": eeg_uv().astype(np.float32),
        **nothing,
    }  # fmt: skip
    scipy.io.savemat(path, {"EEG": content}, appendmat=False)
    return path


@pytest.mark.parametrize(
    ("nose", "axes"),
    [
        ("+X", np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])),
        ("-X", np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])),
        ("+Y", np.eye(3)),
        ("-Y", np.diag([-1, -1, 1])),
    ],
)
def test_the_nose_of_eeglab_is_where_its_file_says(tmp_path: Path, nose: str, axes: np.ndarray) -> None:
    recording = read(write_set(tmp_path / "x_eeg.set", PLACES @ axes.T, nose))
    np.testing.assert_allclose(recording.positions_C3, PLACES, atol=0.1)


def test_a_templates_sphere_is_laid_around_the_head(tmp_path: Path) -> None:
    """MNE takes its centre for the middle between the ears, some 40 mm too low."""
    recording = read(write_set(tmp_path / "x_eeg.set", SPHERE, "+Y"))
    assert np.linalg.norm(recording.positions_C3 - PLACES, axis=1).max() < 22
    assert recording.repairs == ("x_eeg.set: its electrodes lie on a sphere about its centre, which is laid around the "
                                 "head",)  # fmt: skip


def write_table(root: Path, names: list[str], places: np.ndarray, **system: object) -> Path:
    write_json(root / "dataset_description.json", {"Name": "x"})
    path = write_eeg(root, "1", "rest", eeg_uv(), names, {"SamplingFrequency": 250})
    rows = [(name, *(f"{v:.4f}" for v in xyz)) for name, xyz in zip(names, places, strict=True)]
    write_tsv(root / "sub-1/eeg/sub-1_electrodes.tsv", ("name", "x", "y", "z"), rows)
    write_json(root / "sub-1/eeg/sub-1_coordsystem.json", {"EEGCoordinateUnits": "mm", **system})
    return path


def test_a_sphere_about_its_centre_is_in_no_frame_of_bids(tmp_path: Path) -> None:
    recording = read(write_table(tmp_path / "known", KNOWN, SPHERE, EEGCoordinateSystem="CapTrak"))
    np.testing.assert_array_equal(recording.positions_C3, PLACES)  # by their names
    assert "mm away from where their names do in the frame 'CapTrak'" in recording.repairs[0]
    with pytest.raises(RecordingError, match="its electrodes lie on a sphere about its centre") as error:
        read(write_table(tmp_path / "net", NET, SPHERE, EEGCoordinateSystem="CapTrak"))
    assert error.value.reason == "unknown-montage"


def landmarks(to_frame: np.ndarray, origin: np.ndarray) -> dict[str, list[float]]:
    """Of the template, in other axes about another origin [mm]."""
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    marks = mne.channels.transform_to_head(mne.channels.make_standard_montage(name)).get_positions()
    return {ours: (to_frame @ (1e3 * marks[theirs]) + origin).tolist() for ours, theirs in
            (("NAS", "nasion"), ("LPA", "lpa"), ("RPA", "rpa"))}  # fmt: skip


@pytest.mark.parametrize("frame", ["CTF", "ScanRAS", "Other"])
def test_landmarks_say_where_nose_and_ears_are_whatever_the_frame_is_called(tmp_path: Path, frame: str) -> None:
    axes, origin = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) if frame == "Other" else np.eye(3), [3.0, 10.0, -30.0]
    marks = {"AnatomicalLandmarkCoordinates": landmarks(axes, np.array(origin)),
             "AnatomicalLandmarkCoordinateSystem": frame}  # fmt: skip
    path = write_table(tmp_path, NET, PLACES @ axes.T + origin, EEGCoordinateSystem=frame, **marks)
    np.testing.assert_allclose(read(path).positions_C3, PLACES, atol=0.1)
    system = json.loads((tmp_path / "sub-1/eeg/sub-1_coordsystem.json").read_text())
    for change in (
        {"AnatomicalLandmarkCoordinates": {"NAS": "n/a", "LPA": [1, 2, 3], "RPA": [1, 2, 3]}},
        {"AnatomicalLandmarkCoordinateSystem": "MNI305"},
        {"AnatomicalLandmarkCoordinateUnits": "m"},
        {"AnatomicalLandmarkCoordinates": {}},
    ):
        assert by_landmarks({**system, **change}) is None


def around(n: int, radius: float = 90.0, spread: float = 0.0) -> dict[str, np.ndarray]:
    """Electrodes in directions of their own, of radii from ``radius * (1 - spread)`` on."""
    xyz = np.random.default_rng(1).standard_normal((n, 3))
    radii = radius * np.linspace(1 - spread, 1, n)
    return dict(zip(map(str, range(n)), xyz / np.linalg.norm(xyz, axis=1, keepdims=True) * radii[:, None], strict=True))


@pytest.mark.parametrize(
    ("n", "radius", "spread", "sphere"),
    [(8, 90.0, 0.0, True), (7, 90.0, 0.0, False), (8, 90.0, 0.0199, True), (8, 90.0, 0.0201, False),
     (8, 1e-3, 0.0199, True), (0, 1.0, 0.0, False)],
)  # fmt: skip
def test_eight_electrodes_whose_radii_differ_by_a_fiftieth_lie_on_a_sphere(
    n: int, radius: float, spread: float, sphere: bool
) -> None:
    assert on_sphere(around(n, radius, spread)) == sphere


def test_the_sphere_around_the_head_is_that_which_fits_the_template_best() -> None:
    """By least squares, to the tenth of a millimetre and half of one: it is written down in the source."""
    xyz = np.array([place for _, place in standard_positions_mm().values()])
    design, radii = np.c_[2 * xyz, np.ones(len(xyz))], (xyz**2).sum(axis=1)
    solution = np.linalg.lstsq(design, radii, rcond=None)[0]
    centre, radius = solution[:3], np.sqrt(solution[3] + solution[:3] @ solution[:3])
    for scale in (1.0, 7.0):
        found = around_head({"a": scale * np.array([3.0, 4.0, 0.0]), "b": scale * np.array([0.0, 0.0, -2.0])})
        np.testing.assert_allclose(found["a"], centre + radius * np.array([0.6, 0.8, 0]), atol=0.6)
        np.testing.assert_allclose(found["b"], centre + radius * np.array([0, 0, -1]), atol=0.6)


def test_frames_and_units_of_coordsystem_json() -> None:
    assert MM_PER_UNIT == {"m": 1000.0, "cm": 10.0, "mm": 1.0}
    nose, left, up = np.eye(3)
    for frame in ("ctf", "eeglab"):  # x to the nose, y to the left ear
        found = [(TO_HEAD[frame] @ axis).tolist() for axis in (nose, left, up)]
        assert found == [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(TO_HEAD["captrak"], np.eye(3))


@pytest.mark.parametrize("unit", ["m", "cm", "mm"])
def test_landmarks_give_the_head_frame_in_millimetres_whatever_their_unit(unit: str) -> None:
    marks = {"NAS": [0.0, 100.0, 0.0], "LPA": [-70.0, 0.0, 0.0], "RPA": [70.0, 0.0, 0.0]}
    moved = {name: (np.add(xyz, [5, 6, 7]) / MM_PER_UNIT[unit]).tolist() for name, xyz in marks.items()}
    system = {"AnatomicalLandmarkCoordinates": moved, "EEGCoordinateUnits": f" {unit.upper()} "}
    to_head = by_landmarks(system)
    assert to_head is not None
    np.testing.assert_allclose(to_head @ [5, 6, 7, 1], [0, 0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(to_head @ [5, 106, 7, 1], [0, 100, 0, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("nasion", "ear", "sound"),
    [(100, 70, True), (30, 20, False), (30, 20.1, False), (34.7, 20, True), (100, 125, True), (100, 125.1, False),
     (230, 70, True), (245, 70, False), (1000, 70, False)],
)  # fmt: skip
def test_landmarks_are_40_to_250_millimetres_apart(nasion: float, ear: float, sound: bool) -> None:
    """Ear from ear, and either from the nasion."""
    marks = {"NAS": [0, nasion, 0], "LPA": [-ear, 0, 0], "RPA": [ear, 0, 0]}
    system = {"AnatomicalLandmarkCoordinates": marks, "EEGCoordinateUnits": "mm"}
    assert (by_landmarks(system) is not None) == sound


def turned(degrees: float) -> dict[str, np.ndarray]:
    """TEN of the template, turned about the vertical."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {n: np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ standard_positions_mm()[n.lower()][1] for n in TEN}


def mean_cosine(places: dict[str, np.ndarray]) -> float:
    pairs = [(xyz, standard_positions_mm()[name.lower()][1]) for name, xyz in places.items()]
    return float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]))


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.5])
def test_electrodes_may_be_turned_until_their_cosine_is_three_quarters(scale: float) -> None:
    """On average, and whatever the size of the head."""
    angles = np.arange(20, 120, 0.5)
    cosines = np.array([mean_cosine(turned(a)) for a in angles])
    last, first = angles[cosines > 0.751].max(), angles[cosines < 0.749].min()
    assert "cosine" not in _misplaced({n: scale * xyz for n, xyz in turned(last).items()})
    assert "do not lie where their names do (mean cosine 0.7" in _misplaced(
        {n: scale * xyz for n, xyz in turned(first).items()}
    )


def test_electrodes_may_be_moved_together_by_thirty_millimetres_of_a_head_of_usual_size() -> None:
    usual = np.array([standard_positions_mm()[n.lower()][1] for n in TEN])

    def moved(up_mm: float) -> tuple[dict[str, np.ndarray], float]:
        found = np.add(usual, [0, 0, up_mm])
        sizes = [np.median(np.linalg.norm(side, axis=1)) for side in (usual, found)]
        shift = np.linalg.norm((found * sizes[0] / sizes[1] - usual).mean(axis=0))
        return dict(zip(TEN, 1.3 * found, strict=True)), float(shift)

    within = [places for places, shift in map(moved, np.arange(0, -60, -0.25)) if 29.5 < shift < 30]
    beyond = [places for places, shift in map(moved, np.arange(0, -60, -0.25)) if 30 < shift < 30.5]
    assert within and beyond
    assert {_misplaced(places) for places in within} == {""}
    assert {_misplaced(places) for places in beyond} == {"lie 30 mm away from where their names do"}
    three = dict(list(beyond[0].items())[:3])  # too few to say
    assert _misplaced(three) == ""
