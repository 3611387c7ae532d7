"""Times, units and sidecars of EEG files at their limits: what is valid, what agrees, and what a step is.

Covers: data_sharding/clean/eeg_files.py
"""

from pathlib import Path

import edfio
import mne
import numpy as np
import pytest

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site, ref_of_file
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.clean.eeg_files import OpenEeg, open_eeg, positive_number, valid_times

NAMES = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]
STEM = "sub-1/eeg/sub-1_task-rest"


def eeg_uv(seconds: float = 20, sfreq: float = 250) -> np.ndarray:
    return 20 * np.random.default_rng(0).standard_normal((len(NAMES), round(seconds * sfreq)))


def write(root: Path, units: list[str] | None = None, marks: tuple[tuple[float, float, str], ...] = ()) -> Path:
    """An EDF file of 20 s at 250 Hz in a dataset."""
    write_json(root / "dataset_description.json", {"Name": "x"})
    path = root / f"{STEM}_eeg.edf"
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = zip(NAMES, eeg_uv(), units or ["uV"] * len(NAMES), strict=True)
    signals = [edfio.EdfSignal(x, 250, label=name, physical_dimension=unit) for name, x, unit in channels]
    edfio.Edf(signals, annotations=[edfio.EdfAnnotation(*mark) for mark in marks]).write(path)
    return path


def opened(path: Path, **sidecar: object) -> OpenEeg:
    return open_eeg(ref_of_file(path, "eeg"), sidecar)


def refusal(path: Path, **sidecar: object) -> tuple[str, str]:
    with pytest.raises(RecordingError) as error:
        opened(path, **sidecar)
    assert str(error.value).startswith(f"{path.name}: ")
    return error.value.reason, str(error.value)


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), ("0.5", 0.5), (0, None), ("-1", None), ("n/a", None), (None, None), ([1], None), ("nan", None),
     ("inf", None), (1e-9, 1e-9)],
)  # fmt: skip
def test_a_number_of_a_sidecar_is_finite_and_above_zero(value: object, number: float | None) -> None:
    assert positive_number(value) == number


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ({"SamplingFrequency": 252.5}, ""), ({"SamplingFrequency": 252.6}, "sfreq-mismatch"),
        ({"SamplingFrequency": 247.5}, ""), ({"SamplingFrequency": 247.4}, "sfreq-mismatch"),
        ({"SamplingFrequency": "n/a"}, ""),
        # 2 s and a hundredth of what is stated.
        ({"RecordingDuration": 22.2}, ""), ({"RecordingDuration": 22.3}, "truncated"),
        ({"RecordingDuration": 17.9}, ""), ({"RecordingDuration": 17.8}, "wrong-length"),
        ({"EpochLength": 10, "RecordingDuration": 20}, ""), ({"EpochLength": 9, "RecordingDuration": 20}, "trials"),
        ({"EpochLength": 9}, "trials"), ({"EpochLength": 0}, ""), ({"RecordingType": " Epoched "}, "trials"),
        ({"RecordingType": "continuous", "EpochLength": 2}, ""), ({"RecordingType": "discontinuous"}, "trials"),
    ],
)  # fmt: skip
def test_a_sidecar_and_its_file_agree_on_rate_and_length(
    tmp_path: Path, sidecar: dict[str, object], reason: str
) -> None:
    path = write(tmp_path)
    if reason:
        assert refusal(path, **sidecar)[0] == reason.replace("trials", "not-continuous")
    else:
        assert opened(path, **sidecar).raw.n_times == 5000


def test_what_a_refusal_says_of_a_sidecar(tmp_path: Path) -> None:
    path = write(tmp_path)
    name = path.name
    assert refusal(path, SamplingFrequency=500)[1] == f"{name}: sidecar says 500 Hz, the file's header 250 Hz"
    assert refusal(path, RecordingDuration=60)[1] == f"{name}: lasts 20.0 s, expected the sidecar's 60 s"
    assert refusal(path, EpochLength=2)[1] == (
        f"{name}: RecordingType 'n/a', trials of 2 s in the sidecar, expected a continuous recording"
    )
    assert refusal(path, RecordingType="epoched")[1] == (
        f"{name}: RecordingType 'epoched' in the sidecar, expected a continuous recording"
    )


@pytest.mark.parametrize(
    ("onset", "text", "taken"),
    [(5.0, "boundary", True), (5.0, "New Segment/", True), (5.0, "-99", True), (5.0, "edge boundary", True),
     (0.0, "boundary", False), (5.0, "eyes closed", False)],
)  # fmt: skip
def test_pieces_need_a_mark_where_they_meet(tmp_path: Path, onset: float, text: str, taken: bool) -> None:
    """The mark at the start is none: BrainVision's always has one."""
    path = write(tmp_path, marks=((onset, 0.1, text), (1.0, 0.1, "x")))
    if taken:
        opened(path, RecordingType="Discontinuous")
    else:
        assert "no mark in the file where its pieces meet" in refusal(path, RecordingType="Discontinuous")[1]


def test_the_rate_of_channels_tsv_counts_where_the_sidecar_has_none(tmp_path: Path) -> None:
    path = write(tmp_path)
    table = tmp_path / f"{STEM}_channels.tsv"
    write_tsv(table, ("name", "sampling_frequency"), [(name, 500) for name in NAMES])
    assert refusal(path)[1] == f"{path.name}: channels.tsv says 500 Hz, the file's header 250 Hz"
    opened(path, SamplingFrequency=250)


VOLTS = {
    "V": 1.0, "volt": 1.0, "Volts": 1.0, "mV": 1e-3, "mv": 1e-3, "uV": 1e-6, "uv": 1e-6,
    "microV": 1e-6, "microvol": None, "nV": 1e-9, "nv": 1e-9, "kV": None, "": None,
}  # fmt: skip


def test_units_of_a_header_that_mne_does_not_know_are_put_right_and_others_are_left_to_the_table(
    tmp_path: Path,
) -> None:
    for start in range(0, len(VOLTS), len(NAMES)):
        units = [*VOLTS][start : start + len(NAMES)]
        units += ["uV"] * (len(NAMES) - len(units))
        path = write(tmp_path, units)
        write_tsv(tmp_path / f"{STEM}_channels.tsv", ("name", "units"), [(name, "mV") for name in NAMES])
        found = opened(path)
        by_unit = dict(zip(units, NAMES, strict=False))
        known_to_mne = {"V", "mV", "uV"}
        expected = {by_unit[u]: v for u, v in VOLTS.items() if u in by_unit and u not in known_to_mne and v}
        assert found.header_factors == expected
        # Volts, which MNE takes what it does not know for, become the table's millivolts.
        assert found.table_factors == {by_unit[u]: 1e-3 for u, v in VOLTS.items() if u in by_unit and v is None}


@pytest.mark.parametrize(
    ("unit", "volts"),
    [("V", 1.0), ("mV", 1e-3), ("\u00b5V", 1e-6), ("\u03bcV", 1e-6), ("Microvolts", 1e-6), ("microvolt", 1e-6),
     ("nV", 1e-9), ("nanovolts", 1e-9), ("millivolts", 1e-3), ("fT", None)],
)  # fmt: skip
def test_units_of_channels_tsv_are_kept_for_a_file_without_any(tmp_path: Path, unit: str, volts: float | None) -> None:
    path = tmp_path / f"{STEM}_eeg.set"
    write(tmp_path).unlink()
    raw = mne.io.RawArray(1e-6 * eeg_uv(), mne.create_info(NAMES, 250, "eeg"), verbose="error")
    mne.export.export_raw(path, raw, verbose="error")
    write_tsv(tmp_path / f"{STEM}_channels.tsv", ("name", "units"), [("C3", unit), ("C4", "n/a")])
    found = opened(path)
    assert found.header_factors == {}
    if volts is None:
        assert found.table_factors == {}
    else:
        assert found.table_factors == {"C3": pytest.approx(volts / 1e-6)}  # MNE takes them for microvolts


def with_empty_ranges(path: Path, n: int) -> Path:
    content = bytearray(path.read_bytes())
    n_signals = int(content[252:256])
    for i in range(n):
        for place in (104, 112):
            start = 256 + place * n_signals + 8 * i
            content[start : start + 8] = b"5       "
    path.write_bytes(content)
    return path


def test_half_of_the_channels_may_have_an_empty_range(tmp_path: Path) -> None:
    found = opened(with_empty_ranges(write(tmp_path), 3))
    assert found.channels.marked_bad == set(NAMES[:3])
    assert found.repairs == [
        "sub-1_task-rest_eeg.edf: 3 of 6 channels have an empty physical range or a digital one that does not rise "
        f"and are marked bad: {', '.join(NAMES[:3])}"
    ]
    assert refusal(with_empty_ranges(write(tmp_path), 4))[0] == "wrong-unit"


SFREQ, SECONDS = 200.0, 20


def invalid(
    annotations: list[tuple[float, float, str]], first: float = 0.0, ref: RecordingRef | None = None
) -> tuple[list[int], list[str]]:
    """Edges of what is not valid [samples], and what is told."""
    raw = mne.io.RawArray(1e-6 * eeg_uv(SECONDS + first), mne.create_info(NAMES, 250, "eeg"), verbose="error")
    onsets, durations, texts = zip(*annotations, strict=True) if annotations else ([], [], [])
    raw.set_annotations(mne.Annotations(onsets, durations, texts))
    if first:
        raw.crop(first)
    ref = ref or RecordingRef(Site("a", Path(), False, None), Path("x_eeg.edf"), "eeg", {}, {})
    repairs: list[str] = []
    valid_T = valid_times(raw, ref, SFREQ, round(SECONDS * SFREQ), repairs)
    return np.flatnonzero(np.diff(np.concatenate([[True], valid_T, [True]]))).tolist(), repairs


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ((1.0, 0.5, "BAD_x"), [200, 300]), ((1.001, 0.5, "bad"), [200, 301]), ((1.0, 0.001, "bad"), [200, 201]),
        ((0.0, 0.5, "bad"), [0, 100]), ((19.5, 0.4, "bad"), [3900, 3980]), ((1.0, 0.5, "not bad"), []),
        ((1.0, 0.5, "Comment/bad y"), [200, 300]), ((5.0, 0.0, "boundary"), [900, 1100]),
        ((5.0, 3.0, "New Segment/"), [900, 1100]), ((5.0, 0.0, "Edge boundary"), [900, 1100]),
        ((5.0, 0.0, "-99"), [900, 1100]), ((0.2, 0.0, "boundary"), [0, 140]), ((0.0, 0.0, "boundary"), []),
        ((19.75, 0.0, "boundary"), [3850, 4000]), ((5.0, 0.0, "boundless"), []),
    ],
)  # fmt: skip
def test_bad_spans_and_half_a_second_about_a_jump_are_left_out(
    annotation: tuple[float, float, str], expected: list[int]
) -> None:
    assert invalid([annotation]) == (expected, [])


def test_onsets_count_from_the_start_of_what_was_kept_and_spans_may_have_begun_before() -> None:
    spans = [(6.0, 1.0, "bad"), (3.5, 1.0, "bad"), (5.0, 0.0, "boundary")]
    assert invalid(spans, first=4.0) == ([0, 300, 400, 600], [])  # 4 to 4.5 s and the jump at 5 s touch


def test_bad_spans_without_a_length_are_told_and_leave_nothing_out() -> None:
    found = invalid([(1.0, 0.0, "bad"), (3.0, 0.5, "bad"), (5.0, 0.0, "bad y"), (6.0, 0.0, "eyes")])
    assert found == ([600, 700], ["x_eeg.edf: 2 bad spans without a length leave nothing out"])
    assert invalid([]) == ([], [])


def of_events(root: Path, *rows: tuple[object, ...], columns: str = "onset duration trial_type value") -> RecordingRef:
    table = root / "sub-1_events.tsv"
    write_tsv(table, tuple(columns.split()), rows)
    return RecordingRef(Site("a", root, False, None), root / "x_eeg.edf", "eeg", {}, {"events.tsv": (table,)})


def test_events_are_bad_by_either_column_and_the_end_itself_is_not_beyond(tmp_path: Path) -> None:
    rows = [(1.0, 0.5, "BAD_x", 1), (3.0, 0.5, "go", "bad"), (5.0, "n/a", "boundary", 1), (7.0, 1.0, "go", "stop"),
            (9.0, 0.25, "n/a", "Bad"), (20.0, 1.0, "bad", 1)]  # fmt: skip
    assert invalid([], ref=of_events(tmp_path, *rows)) == ([200, 300, 600, 700, 900, 1100, 1800, 1850], [])
    beyond = [*rows, (20.01, 1.0, "go", 1), (99.0, 1.0, "bad", 1)]
    assert invalid([], ref=of_events(tmp_path, *beyond))[1] == [
        "sub-1_events.tsv: 2 events begin after the end at 20.0 s and are ignored"
    ]


def test_bad_spans_are_refused_where_most_events_lie_beyond_the_end(tmp_path: Path) -> None:
    half = [(1.0, 1.0, "bad", 1), (500.0, 1.0, "go", 1)]
    assert invalid([], ref=of_events(tmp_path, *half))[0] == [200, 400]
    most = [*half, (600.0, 1.0, "go", 1)]
    with pytest.raises(
        RecordingError, match=r"sub-1_events\.tsv: 2 of 3 events begin after the end at 20\.0 s"
    ) as error:
        invalid([], ref=of_events(tmp_path, *most))
    assert error.value.reason == "bad-table"
    harmless = [(onset, length, "go", 1) for onset, length, _, _ in most]
    assert invalid([], ref=of_events(tmp_path, *harmless))[0] == []


def test_a_bad_span_without_a_time_leaves_nothing_out(tmp_path: Path) -> None:
    rows = [("n/a", 1.0, "bad", 1), (3.0, "n/a", "bad", 1), (4.0, 0.5, "bad", 1), (6.0, -1.0, "bad", 1)]
    assert invalid([], ref=of_events(tmp_path, *rows)) == (
        [800, 900], ["x_eeg.edf: 3 bad spans without a length leave nothing out"],
    )  # fmt: skip
