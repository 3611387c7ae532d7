"""Tables of channels and electrodes as people have them: what is EEG, what takes part in the reference, where it is."""

from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
import pytest

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import ref_of_file
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_tsv
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.eeg_channels import (
    _one_rate,
    biosemi_names,
    normalise_channel,
    normalise_channels,
    shared_reference,
    standard_positions_mm,
)
from mcsp.data_sharding.clean.recording import CleanRecording

NAMES = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "T7", "T8"]
NETS = [f"E{i}" for i in range(1, 11)]
STEM = "sub-1/eeg/sub-1_task-rest"


def eeg_uv(n: int = 10, seed: int = 0, seconds: int = 20) -> np.ndarray:
    t = np.arange(250 * seconds) / 250
    noise = np.random.default_rng(seed).standard_normal((n, len(t)))
    return 25 * np.sin(2 * np.pi * 10 * t + np.arange(n)[:, None]) + 5 * noise


def write(root: Path, x_CT: np.ndarray | None = None, names: Sequence[str] = NAMES) -> Path:
    """A recording without ``channels.tsv``."""
    write_json(root / "dataset_description.json", {"Name": "x"})
    path = write_eeg(root, "1", "rest", eeg_uv() if x_CT is None else x_CT, names, {"SamplingFrequency": 250})
    (root / f"{STEM}_channels.tsv").unlink()
    return path


def electrodes(root: Path, unit: str, frame: str = "CapTrak", scale: float = 1.0, space: str = "",
               names: Sequence[str] = NAMES) -> Path:  # fmt: skip
    """Places of NAMES, in millimetres times ``scale``, under the given names."""
    places = [standard_positions_mm()[name.lower()][1] * scale for name in NAMES]
    path = root / f"sub-1/eeg/sub-1{space}_electrodes.tsv"
    rows = [(name, *(f"{v:.5f}" for v in xyz)) for name, xyz in zip(names, places, strict=True)]
    write_tsv(path, ("name", "x", "y", "z"), rows)
    system = {"EEGCoordinateSystem": frame, "EEGCoordinateUnits": unit}
    write_json(root / f"sub-1/eeg/sub-1{space}_coordsystem.json", system)
    return path


def read(path: Path) -> CleanRecording:
    return read_eeg(ref_of_file(path, "eeg"), EegConfig(), min_seconds=10)


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(RecordingError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(
    ("unit", "scale", "likely"), [("m", 1.0, "mm"), ("mm", 0.1, "cm"), ("mm", 0.001, "m"), ("cm", 1.0, "mm")]
)
def test_places_that_no_head_has_are_refused_with_the_likely_unit(
    tmp_path: Path, unit: str, scale: float, likely: str
) -> None:
    path = write(tmp_path)
    table = electrodes(tmp_path, unit, scale=scale)
    reason, text = refusal(path)
    assert reason == "electrodes-unit"
    assert text.startswith(table.name) and text.endswith(f"expected 40 to 200 mm: the values look like {likely}")
    electrodes(tmp_path, likely, scale=scale)
    expected = [standard_positions_mm()[name.lower()][1] for name in NAMES]
    np.testing.assert_allclose(read(path).positions_C3, expected, atol=0.1)


def test_one_electrode_elsewhere_has_no_place_and_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, names=NETS)
    table = electrodes(tmp_path, "mm", names=NETS)
    table.write_text(table.read_text() + "ground\t0\t0\t0\n")
    found = read(path)
    assert found.channels == NETS
    assert found.repairs == (f"{table.name}: places where no head is are not used: ground",)


def test_what_is_not_understood_of_a_coordinate_system_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, names=NETS)
    table = electrodes(tmp_path, "meters", scale=1e-3, names=NETS)
    reason, text = refusal(path)
    assert reason == "unknown-montage"
    assert f"{table.name} is not used: sub-1_coordsystem.json says EEGCoordinateUnits 'meters', expected m, cm" in text
    electrodes(tmp_path, "mm", "Other", names=NETS)
    assert "says EEGCoordinateSystem 'Other', expected CapTrak, CTF or EEGLAB" in refusal(path)[1]
    (tmp_path / "sub-1/eeg/sub-1_coordsystem.json").unlink()
    assert "there is no coordsystem.json of its space" in refusal(path)[1]
    table.unlink()
    # Of two tables the one that is understood counts, whatever comes first by name.
    electrodes(tmp_path, "mm", "Other", space="_space-Other", names=NETS)
    electrodes(tmp_path, "mm", "CapTrak", space="_space-CapTrak", names=NETS)
    expected = [standard_positions_mm()[name.lower()][1] for name in NAMES]
    found = read(path)
    np.testing.assert_allclose(found.positions_C3, expected, atol=0.01)
    assert found.repairs == ()


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    table = electrodes(tmp_path, "mm")
    sound = table.read_text()
    table.write_text(sound.replace(".", ","))
    reason, text = refusal(path)
    assert reason == "bad-table"
    assert text.startswith(f"{table.name}: row 1, column x: '-30,9") and text.endswith("a number with a decimal point")
    table.write_text(sound.replace("\t", ";"))
    assert refusal(path)[1].startswith(f"{table.name}: no column name, x, y, z, expected columns separated by tabs")
    table.write_text(sound + "Fp1\t1\t2\t99\n")
    assert refusal(path)[1] == f"{table.name}: row 11: 'Fp1' twice, at two places"
    table.write_text(sound)
    events = tmp_path / f"{STEM}_events.tsv"
    write_tsv(events, ("Onset", "Duration", "trial_type"), [(5, 1, "BAD_x"), (6, "2 s", "cue")])
    assert refusal(path) == ("bad-table", f"{events.name}: row 2, column duration: '2 s', expected a number")
    write_tsv(events, ("Onset", "Duration", "trial_type"), [(5, 1, "BAD_x")])
    assert read(path).valid_spans == [0, 1000, 1200, 4000]
    events.write_text("")  # says nothing
    assert read(path).valid_spans == [0, 4000]


@pytest.mark.parametrize("separator", [",", ";", "  "])
def test_a_table_of_channels_with_another_separator_is_refused(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path)
    table = tmp_path / f"{STEM}_channels.tsv"
    rows = [("name", "type", "status"), *((name, "EEG", "bad" if name == "C3" else "good") for name in NAMES)]
    table.write_text("\n".join(separator.join(row) for row in rows) + "\n")
    reason, text = refusal(path)
    assert reason == "bad-table" and text.startswith(
        f"{table.name}: no column name, expected columns separated by tabs"
    )


def test_names_are_compared_as_everywhere_else(tmp_path: Path) -> None:
    """Case, T3 for T7, decoration; also the header's own words in capitals, and a table in Latin-1."""
    path = write(tmp_path)
    table = tmp_path / f"{STEM}_channels.tsv"
    other = ["FP1", "fp2", "EEG F3-REF", "F4 ", "C3", "c4", "P3", "P4", "T3", "T4"]
    rows = [(name, "eeg", "\u00b5V", "BAD" if name in ("FP1", "T4") else "good") for name in other]
    write_tsv(table, ("Name", "TYPE", "Units", "Status"), rows)
    found = read(path)
    assert [c for c, good in zip(found.channels, found.channel_good_C, strict=True) if not good] == ["Fp1", "T8"]
    assert found.repairs == ()
    table.write_bytes(table.read_text().encode("latin-1"))
    again = read(path)
    np.testing.assert_array_equal(again.x_TC, found.x_TC)
    assert again.repairs == (f"{table.name}: not UTF-8, read as Latin-1",)
    write_tsv(table, ("name", "status"), [*((name, "good") for name in NAMES), ("C3", "bad")])
    assert refusal(path) == ("bad-table", f"{table.name}: row 11: 'C3' twice, status 'good' and 'bad'")
    write_tsv(table, ("name", "type", "name"), [(name, "EEG", name) for name in NAMES])
    assert refusal(path) == ("bad-table", f"{table.name}: column 'name' twice, expected each name once")


def test_a_table_that_was_not_fetched_costs_the_recording(tmp_path: Path) -> None:
    path = write(tmp_path)
    table = tmp_path / f"{STEM}_channels.tsv"
    table.write_text("/annex/objects/MD5E-s344--d41d8cd98f00b204e9800998ecf8427e.tsv\n")
    assert refusal(path) == ("missing-file", f"{table.name}: a pointer of git-annex, expected the content of the file")
    table.unlink()
    table.symlink_to("../../.git/annex/objects/x")
    assert refusal(path)[0] == "missing-file"


def test_channels_without_a_place_take_no_part_in_the_reference(tmp_path: Path) -> None:
    others = ["EEG LOC-REF", "EEG ROC-REF", "EEG 31-REF", "Chin1", "Snore", "EEG A2-A1", "ECG ECG"]
    names = [f"EEG {name.upper()}-REF" for name in NAMES]
    alone = read(write(tmp_path / "a", eeg_uv(), names))
    x_CT = np.vstack([eeg_uv(), 3 * eeg_uv(len(others), seed=9)])
    together = read(write(tmp_path / "b", x_CT, [*names, *others]))
    assert together.channels == alone.channels == NAMES
    np.testing.assert_array_equal(together.x_TC, alone.x_TC)
    assert alone.repairs == () and together.repairs == (
        "sub-1_task-rest_eeg.edf: 6 EEG channels without a position are left out: EEG LOC-REF, EEG ROC-REF, "
        "EEG 31-REF, Chin1 ...",
    )
    # The reference is the mean of what was written: the other channels are no part of it.
    x_CT = eeg_uv() - eeg_uv().mean(axis=0)
    middle = np.interp(np.arange(1000, 3000) / 200, np.arange(x_CT.shape[1]) / 250, x_CT[0])
    assert np.corrcoef(together.x_TC[1000:3000, 0], middle)[0, 1] > 0.97


def test_a_net_of_which_few_places_are_known_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, names=[*NETS[:7], "Cz", "C3", "C4"])
    assert refusal(path) == (
        "unknown-montage",
        f"{path.name}: 3 of 10 EEG channels have a position (Cz, C3, C4), expected at least 4: E1, E2, E3, E4 ... have "
        "none; expected 10-05 names or electrodes.tsv",
    )
    assert read(write(tmp_path, names=[*NETS[:6], "Cz", "C3", "C4", "Pz"])).channels == ["Cz", "C3", "C4", "Pz"]
    assert read(write(tmp_path / "two", eeg_uv(2), ["C3", "C4"])).channels == ["C3", "C4"]  # holds no others


@pytest.mark.parametrize(
    ("name", "expected"),
    [("EEG A2-A1", "A2-A1"), ("M1-M2", "M1-M2"), ("EEG A1-REF", "M1"), ("EEG C3-A2", "C3"), ("A2", "M2")],
)
def test_the_difference_of_two_ears_is_no_place(name: str, expected: str) -> None:
    assert normalise_channel(name) == expected


@pytest.mark.parametrize(
    "axes",
    [np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]), np.diag([-1, 1, 1]), np.eye(3)[[0, 2, 1]]],
    ids=["EEGLAB's", "left and right", "up and front"],
)
def test_axes_that_are_not_those_of_the_frame_are_seen_by_the_names(tmp_path: Path, axes: np.ndarray) -> None:
    """Exports call EEGLAB's axes CapTrak, or exchange left and right: the places of the names are right then."""
    path, table = write(tmp_path), electrodes(tmp_path, "mm")
    assert read(path).repairs == ()
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    write_tsv(table, ("name", "x", "y", "z"), [(row[0], *(axes @ np.array(row[1:], float))) for row in rows])
    recording = read(path)
    np.testing.assert_allclose(recording.positions_C3, [standard_positions_mm()[name.lower()][1] for name in NAMES])
    assert "sub-1_electrodes.tsv is not used: its electrodes do not lie where their names do" in recording.repairs[0]


def test_electrodes_against_the_ear_of_their_side_have_two_references(tmp_path: Path) -> None:
    """The average reference would leave the difference of the ears in all of them."""
    names = [f"EEG {name}-{'A1' if int(name[-1]) % 2 else 'A2'}" for name in NAMES]
    with pytest.raises(RecordingError, match=r"EEG Fp2-A2, .* against M2, others against M1; expected .* one ref") as e:
        read(write(tmp_path, names=names))
    assert e.value.reason == "unknown-montage"


def test_few_channels_against_another_ear_are_marked_bad(tmp_path: Path) -> None:
    of_all = read(write(tmp_path / "all", names=[f"{name}-M1" for name in NAMES]))
    recording = read(write(tmp_path, names=[f"{name}-{'A1' if i > 1 else 'A2'}" for i, name in enumerate(NAMES)]))
    assert of_all.channel_good_C.all() and of_all.repairs == ()
    assert recording.channel_good_C.tolist() == [False] * 2 + [True] * 8
    assert recording.repairs == ("sub-1_task-rest_eeg.edf: Fp1-A2, Fp2-A2 against M2, others against M1: marked bad",)


@pytest.mark.parametrize(
    ("references", "fate"),
    [
        (["Cz"] * 9 + ["n/a"], "read"),
        (["M1"] * 8 + ["A1", "a1"], "read"),
        (["left ear"] * 5 + ["right ear"] * 5, "refused"),
        ([*NAMES[1:], "Cz"], "refused"),  # each against its neighbour
    ],
)
def test_references_that_the_table_of_channels_states(tmp_path: Path, references: list[str], fate: str) -> None:
    path = write(tmp_path)
    rows = [(name, "EEG", reference) for name, reference in zip(NAMES, references, strict=True)]
    write_tsv(tmp_path / f"{STEM}_channels.tsv", ("name", "type", "reference"), rows)
    if fate == "read":
        assert read(path).channel_good_C.all()
    else:
        with pytest.raises(RecordingError, match="expected each channel against one reference"):
            read(path)


@pytest.mark.parametrize("name", ["{}-Cz", "{}-A1A2", "EEG {}-CAR", "EEG:{}", "{} (uV)", "{}-M1M2"])
def test_one_reference_of_all_is_no_part_of_a_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, names=[name.format(channel) for channel in NAMES])
    write_tsv(tmp_path / f"{STEM}_channels.tsv", ("name", "type", "status"), [(n, "EEG", "bad" if n == "C3" else "good")
                                                                             for n in NAMES])  # fmt: skip
    recording = read(path)
    assert recording.channels == NAMES
    assert recording.channel_good_C.tolist() == [n != "C3" for n in NAMES]


def test_differences_of_neighbours_are_told_also_where_one_comes_twice(tmp_path: Path) -> None:
    names = ["Fp1-F7", "F7-T7", "T7-P7", "P7-O1", "Fp1-F3", "F3-C3", "C3-P3", "P3-O1", "T8-P8", "T8-P8"]
    assert "differences between electrodes" in refusal(write(tmp_path, names=names))[1]


@pytest.mark.parametrize(
    ("columns", "cells", "reason", "pattern"),
    [
        (("status",), ("noisy",), "bad-table", "row 1, column status: 'noisy', expected good or bad"),
        (("sampling_frequency",), ("1000",), "sfreq-mismatch", "channels.tsv says 1000 Hz, the file's header 250 Hz"),
        (("note", "status"), ("a\tb", "bad"), "bad-table", "row 1 has more cells than the header, expected 3"),
        (("type",), ("MISC",), "no-channels", "none of 10 channels is EEG: Fp1 is of type MISC in channels.tsv"),
    ],
)
def test_cells_of_channels_tsv_that_nobody_understands(
    tmp_path: Path, columns: Sequence[str], cells: Sequence[str], reason: str, pattern: str
) -> None:
    path = write(tmp_path)
    write_tsv(tmp_path / f"{STEM}_channels.tsv", ("name", *columns), [(name, *cells) for name in NAMES])
    write_json(tmp_path / f"{STEM}_eeg.json", {})
    found, text = refusal(path)
    assert found == reason and pattern in text


@pytest.mark.parametrize(
    ("cells", "rate"),
    [(["250", "250.0"], 250.0), (["0.5", "5e-1"], 0.5), (["0"], None), (["250", "500"], None), (["", "250"], None),
     (["-1"], None), ([], None)],
)  # fmt: skip
def test_channels_state_a_rate_where_all_state_the_same_above_zero(cells: list[str], rate: float | None) -> None:
    assert _one_rate(cells) == rate


def test_the_template_is_mnes_to_the_micrometre() -> None:
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    montage = mne.channels.transform_to_head(mne.channels.make_standard_montage(name)).get_positions()["ch_pos"]
    for channel in ("Cz", "Fp1", "AFp3h"):
        label, xyz_mm = standard_positions_mm()[channel.lower()]
        assert label == channel and xyz_mm.tolist() == [round(float(v) * 1000, 3) for v in montage[channel]]


def test_more_than_an_eighth_of_the_names_are_biosemis_alone_or_none_is() -> None:
    """A1 and C3 are names of the 10-05 system as well."""
    rest = ["A1", "C3", "Fp1", "Cz", "Pz", "Oz"]
    assert biosemi_names(["B7", "C4", *rest]) == set()
    assert biosemi_names(["B7", "A32", *rest]) == {"B7", "A32", "A1", "C3"}
    assert normalise_channels(["B7", "A32", "A1", "t3"]) == ["B7", "A32", "A1", "T7"]
    assert biosemi_names(["A1", "A2", "C3", "D4"]) == set()


def test_one_reference_is_that_of_four_channels() -> None:
    assert shared_reference(["C3-Cz", "C4-Cz", "F3-Cz", "F4 - M1"]) == ""
    assert shared_reference(["C3-Cz", "C4-Cz", "F3-Cz", "P3-Cz", "F4-M1", "F7-M1"]) == "-Cz"
    assert shared_reference([]) == "" and shared_reference(["C3-12"] * 5) == ""


def test_of_two_names_of_one_place_the_later_keeps_its_own() -> None:
    assert normalise_channels(["T3", "T7", "EEG T3-REF", "C3"]) == ["T7", "T7-2", "EEG T3-REF", "C3"]


@pytest.mark.parametrize(("n", "more"), [(4, ""), (5, " ...")])
def test_four_channels_without_a_place_are_named(tmp_path: Path, n: int, more: str) -> None:
    path = write(tmp_path, eeg_uv(10 + n), [*NAMES, *NETS[:n]])
    [repair] = read(path).repairs
    assert repair == f"{path.name}: {n} EEG channels without a position are left out: E1, E2, E3, E4{more}"
    nets = write(tmp_path / "nets", eeg_uv(n), NETS[:n])
    assert refusal(nets)[1] == (
        f"{nets.name}: no position for E1, E2, E3, E4{more}; expected 10-05 names or electrodes.tsv"
    )
    few = write(tmp_path / "few", eeg_uv(n + 3), ["Cz", "C3", "C4", *NETS[:n]])
    assert f"(Cz, C3, C4), expected at least 4: E1, E2, E3, E4{more} have none; expected 10-05" in refusal(few)[1]


def test_half_of_the_rows_of_a_table_may_name_no_channel(tmp_path: Path) -> None:
    path = write(tmp_path)
    table = tmp_path / f"{STEM}_channels.tsv"
    others = [f"X{i}" for i in range(1, 12)]
    write_tsv(table, ("name", "status"), [(name, "good") for name in [*NAMES, *others[:10]]])
    assert read(path).repairs == (
        f"{table.name}: rows without a channel in the file are ignored: {', '.join(sorted(others[:10]))}",
    )
    write_tsv(table, ("name", "status"), [(name, "good") for name in [*NAMES, *others]])
    assert refusal(path) == (
        "channels-mismatch",
        f"{table.name}: 11 of 21 rows, such as 'X1', name no channel of the file, expected its 10 channels",
    )


def test_rows_of_electrodes_may_come_twice_at_one_place_and_alike_names_are_nobodys(tmp_path: Path) -> None:
    path = write(tmp_path)
    table = electrodes(tmp_path, "mm", scale=0.9)
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines, lines[1]]))
    ours = [0.9 * standard_positions_mm()[name.lower()][1] for name in NAMES]
    np.testing.assert_allclose(read(path).positions_C3, ours, atol=0.01)
    table.write_text("".join([lines[0], *(line.replace("Fp1", name) for name in ("FP1", "fp1") for line in lines[1:2]),
                              *lines[2:]]))  # fmt: skip
    found = read(path).positions_C3
    np.testing.assert_array_equal(found[0], standard_positions_mm()["fp1"][1])  # which of both, nobody says
    np.testing.assert_allclose(found[1:], ours[1:], atol=0.01)


@pytest.mark.parametrize(("radius", "used"), [(40.1, True), (39.9, False), (199.9, True), (200.1, False)])
def test_an_electrode_lies_40_to_200_millimetres_from_the_origin(tmp_path: Path, radius: float, used: bool) -> None:
    path = write(tmp_path, names=NETS)
    table = electrodes(tmp_path, "mm", names=NETS)
    lines = table.read_text().splitlines()
    xyz = np.array(lines[1].split("\t")[1:], dtype=float)
    xyz *= radius / np.linalg.norm(xyz)
    table.write_text("\n".join([lines[0], "\t".join(["E1", *(f"{v:.4f}" for v in xyz)]), *lines[2:]]) + "\n")
    found = read(path)
    assert found.channels == (NETS if used else NETS[1:])
    assert any("places where no head is are not used: E1" in line for line in found.repairs) != used
