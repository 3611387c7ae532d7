"""Columns find their parcels by name, label or order; parcels without places are refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import write_tsv
from mcsp.data_sharding.parcels.parcellation import (
    ParcelRow,
    Parcels,
    image_parcels,
    parcel_table,
    place_columns,
    require_places,
    table_beside,
    voxels_of,
)

ROWS: list[ParcelRow] = [(f"CC_{i}", i, (10.0 * i, -10.0 * i, 5.0)) for i in (1, 2, 4)]
X_TP = np.arange(15.0).reshape(5, 3)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (None, [0, 1, 2]),
        (["CC_4", "CC_1", "CC_2"], [1, 2, 0]),
        (["1", "2", "4"], [0, 1, 2]),
        (["4", "2", "1"], [2, 1, 0]),
        (["Mean_2", "Mean_1", "Mean_4"], [1, 0, 2]),
        (["0", "1", "2"], [0, 1, 2]),  # they count the columns: no parcel has the label 0
        (["1", "2", "3"], [0, 1, 2]),
    ],
)
def test_columns_are_known_by_name_label_or_order(names: list[str] | None, columns: list[int]) -> None:
    x_TP, parcels = place_columns(X_TP, names, ROWS, "a.tsv", "MNI152NLin6Asym")
    np.testing.assert_array_equal(x_TP, X_TP[:, columns])
    assert parcels.names == ["CC_1", "CC_2", "CC_4"] and parcels.space == "MNI152NLin6Asym"
    np.testing.assert_array_equal(parcels.positions_P3[2], [40, -40, 5])


@pytest.mark.parametrize(
    ("x_TP", "names", "reason", "pattern"),
    [
        (X_TP[:3].T.repeat(3, axis=1), None, "bad-table", "the table is turned round"),
        (X_TP[:, :2], None, "parcels-mismatch", "2 columns, expected the table's 3 parcels"),
        (X_TP[:, :2], ["1", "2"], "parcels-mismatch", "2 columns, expected the table's 3 parcels"),
        (X_TP, ["a", "b", "c"], "parcels-mismatch", "no column is one of the 3 parcels, found 'a', 'b', 'c', exp"),
        (X_TP, ["CC_1", "CC_2", "Vermis"], "parcels-mismatch", "1 of 3 columns are none of the 3 parcels, found 'Ver"),
        (X_TP[:3], None, "bad-table", "3 rows and 3 columns without names do not say which axis is time"),
    ],
)
def test_columns_of_something_else_are_refused(
    x_TP: np.ndarray, names: list[str] | None, reason: str, pattern: str
) -> None:
    with pytest.raises(RecordingError, match=pattern) as error:
        place_columns(x_TP, names, ROWS, "a.tsv")
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "name", ["global_signal", "csf", "framewise_displacement", "trans_x_derivative1_power2", "a_comp_cor_03", "DVARS"]
)
def test_confounds_beside_the_parcels_are_left_out_and_counted(name: str) -> None:
    x_TP = np.insert(X_TP, 1, -1.0, axis=1)
    for names in (["CC_1", name, "CC_2", "CC_4"], ["1", name, "2", "4"]):
        found_TP, parcels = place_columns(x_TP, names, ROWS, "a.tsv")
        np.testing.assert_array_equal(found_TP, X_TP)
        assert parcels.names == ["CC_1", "CC_2", "CC_4"]
        assert parcels.repairs == (f"a.tsv: 1 columns of no parcel are left out: {name}",)
    rows = [*ROWS, (name, 9, (1.0, 2.0, 3.0))]  # a parcel of that name is one
    assert place_columns(x_TP, ["CC_1", name, "CC_2", "CC_4"], rows, "a.tsv")[1].names[-1] == name


@pytest.mark.parametrize("name", ["7Networks_{}H_Vis_{}", "{}_V{}_ROI", "Caudate {} {}", "Area{1}_{0}", "{0}h-{1}"])
def test_a_parcel_lies_on_the_side_that_its_name_says(name: str) -> None:
    """Positions in LPS, as ITK has them, would turn the brain round."""
    sides = ["L" if i % 2 else "R" for i in range(10)]
    names = [name.format(side, i) for i, side in enumerate(sides)]
    positions_P3 = np.array([[-30.0 if side == "L" else 30, 4 * i - 20, 8] for i, side in enumerate(sides)])
    require_places(Parcels(names, [], positions_P3), 0.5, "a.tsv")
    with pytest.raises(RecordingError, match="10 of 10 parcels lie on the other side than their names say") as error:
        require_places(Parcels(names, [], positions_P3 * [-1, -1, 1]), 0.5, "a.tsv")
    assert error.value.reason == "unknown-parcellation"


@pytest.mark.parametrize(
    ("positions_P3", "pattern"),
    [
        (np.full((4, 3), np.nan), "0 of 4 parcels have a position"),
        (np.where(np.arange(4)[:, None] == 0, 50.0, np.nan) * np.ones(3), "1 of 4 parcels have a position"),
        (np.full((4, 3), 0.06), "no voxels or metres"),
        (np.full((4, 3), 6000.0), "no voxels or metres"),
    ],
)
def test_parcels_need_places_in_millimetres(positions_P3: np.ndarray, pattern: str) -> None:
    with pytest.raises(RecordingError, match=pattern) as error:
        require_places(Parcels(list("abcd"), [], positions_P3), 0.5, "a.tsv")
    assert error.value.reason == "unknown-parcellation"
    require_places(Parcels(list("abcd"), [], np.full((4, 3), 60.0)), 0.5, "a.tsv")


def test_a_table_of_parcels_is_read_in_the_words_of_its_maker_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "seg-A_dseg.tsv"
    write_tsv(path, ("label", "x_mm", "y_mm", "z_mm"), [(1, -39.6, -85.4, 1.4), (2, 1, 2, "n/a")])
    rows = parcel_table(path)
    assert rows[0] == ("1", 1, (-39.6, -85.4, 1.4)) and np.isnan(rows[1][2][2])
    for cells, pattern in (
        ([("a", "1,5")], "row 1: could not convert"),
        ([("a", 1), ("a", 2)], "'a' is the name of 2"),
    ):
        write_tsv(path, ("Name", "X"), cells)
        with pytest.raises(RecordingError, match=pattern) as error:
            parcel_table(path)
        assert error.value.reason == "bad-table"
    write_tsv(path, ("region", "x", "y", "z"), [("a", 1, 2, 3)])
    with pytest.raises(RecordingError, match="no column index or name, found 'region', 'x'"):
        parcel_table(path)


def test_columns_without_names_need_a_table_in_the_order_of_its_index() -> None:
    with pytest.raises(RecordingError, match="not in the order of its index, expected names of the columns") as error:
        place_columns(X_TP, None, ROWS[::-1], "a.tsv")
    assert error.value.reason == "parcels-mismatch"
    assert place_columns(X_TP, ["CC_1", "CC_2", "CC_4"], ROWS[::-1], "a.tsv")[1].names == ["CC_4", "CC_2", "CC_1"]


def test_voxels_are_no_places_also_where_they_are_as_large_as_millimetres() -> None:
    voxels_P3 = np.random.default_rng(0).uniform(5, 60, (8, 3))
    with pytest.raises(RecordingError, match="no parcel has a negative coordinate") as error:
        require_places(Parcels(list("abcdefgh"), [], voxels_P3), 0.5, "a.tsv")
    assert error.value.reason == "unknown-parcellation"
    require_places(Parcels(list("abcdefgh"), [], voxels_P3 * [-1, 1, 1]), 0.5, "a.tsv")  # of one hemisphere


def test_an_index_as_pandas_writes_it_and_the_background(tmp_path: Path) -> None:
    path = tmp_path / "seg-A_dseg.tsv"
    write_tsv(path, ("index", "name"), [("0.0", "Background"), ("1.0", " left "), ("2.0", "right")])
    assert [row[:2] for row in parcel_table(path)] == [("left", 1), ("right", 2)]


def test_labels_of_an_image_are_all_but_the_background_with_their_centres() -> None:
    labels = np.zeros((6, 5, 4, 1))
    labels[1, 2, 3], labels[2:5, 0, 0] = 7, 3
    image = nibabel.Nifti1Image(labels, np.diag([2.0, 2, 2, 1]))
    voxels, affine, present, centres_L3 = voxels_of(image, "a.nii")
    assert voxels.shape == (6, 5, 4) and voxels.dtype == np.int32 and affine[0, 0] == 2
    assert present == [3, 7]
    np.testing.assert_array_equal(centres_L3, [[6, 0, 0], [2, 4, 6]])
    for wrong in (np.zeros((6, 5, 4)), labels[..., 0] + 0.5, np.where(labels, np.nan, 0.0)[..., 0], labels[:, :, 0, 0]):
        with pytest.raises(RecordingError, match="expected integer labels in three dimensions"):
            voxels_of(nibabel.Nifti1Image(wrong, np.eye(4)), "a.nii")


def test_columns_of_no_known_parcellation_are_numbered_from_one() -> None:
    x_TP, parcels = place_columns(X_TP, None, [], "a.tsv")
    assert x_TP is X_TP and parcels.names == ["parcel-1", "parcel-2", "parcel-3"]
    assert parcels.positions_P3.shape == (3, 3) and np.isnan(parcels.positions_P3).all()
    assert place_columns(X_TP, ["a", "b", "c"], [], "a.tsv")[1].names == ["a", "b", "c"]


def placed(*xyz: tuple[float, float, float]) -> np.ndarray:
    return np.array(xyz)


@pytest.mark.parametrize(
    ("positions_P3", "max_unplaced", "sound"),
    [
        (placed((50, 0, 0), (np.nan, 0, 0)), 0.5, True), (placed((50, 0, 0), (np.nan, 0, 0)), 0.49, False),
        (placed((np.nan, 0, 0)), 1.0, False), (placed((50, 0, np.nan), (50, 0, 0)), 0.5, True),
        (placed((10, 0, 0)), 0, True), (placed((-9.9, 9, 9)), 0, False), (placed((0, -150, 0)), 0, True),
        (placed((0, 0, 150.1)), 0, False),
        (np.arange(24.0).reshape(8, 3), 0, False), (np.arange(21.0).reshape(7, 3), 0, True),
        (np.arange(24.0).reshape(8, 3) - 0.01, 0, True),
    ],
)  # fmt: skip
def test_places_at_the_limits(positions_P3: np.ndarray, max_unplaced: float, sound: bool) -> None:
    parcels = Parcels([f"p{i}" for i in range(len(positions_P3))], [], positions_P3)
    if sound:
        require_places(parcels, max_unplaced, "a.tsv")
    else:
        with pytest.raises(RecordingError) as error:
            require_places(parcels, max_unplaced, "a.tsv")
        assert error.value.reason == "unknown-parcellation"


@pytest.mark.parametrize(
    ("n", "wrong", "x", "name", "sound"),
    [(8, 4, 30.0, "{}h_{}", True), (8, 5, 30.0, "{}h_{}", False), (7, 7, 30.0, "{}h_{}", True),
     (8, 8, 3.0, "{}h_{}", True), (8, 8, 3.1, "{}h_{}", False), (8, 8, 30.0, "p{}{}", True),
     (8, 8, 30.0, "L_{}_{}_R", True)],
)  # fmt: skip
def test_sides_are_those_of_most_of_eight_parcels_beyond_the_middle(
    n: int, wrong: int, x: float, name: str, sound: bool
) -> None:
    sides = ["lr"[i % 2] for i in range(n)]
    x_P = [(x if side == "r" else -x) * (-1 if i < wrong else 1) for i, side in enumerate(sides)]
    positions_P3 = np.array([[x, -20, 8] for x in x_P])
    parcels = Parcels([name.format(side, i) for i, side in enumerate(sides)], [], positions_P3)
    if sound:
        require_places(parcels, 0.5, "a.tsv")
    else:
        with pytest.raises(RecordingError, match=f"{wrong} of {n} parcels lie on the other side"):
            require_places(parcels, 0.5, "a.tsv")


CENTRES = placed((0, 0, 0), (20, 0, 0), (40, 0, 0))


def test_a_label_has_the_name_and_place_of_its_table_else_its_own() -> None:
    rows: list[ParcelRow] = [("two", 2, (19.0, 1, 1)), ("five", 5, (np.nan,) * 3), ("nine", 9, (7.0, 7, 7)),
                             ("unlabelled", None, (1.0, 1, 1))]  # fmt: skip
    parcels = image_parcels([2, 3, 5], CENTRES, "seg-S_dseg.nii.gz", rows, "MNI152")
    assert parcels.names == ["two", "S-3", "five", "nine"] and parcels.labels == [2, 3, 5, 9]
    np.testing.assert_array_equal(parcels.positions_P3, [[19, 1, 1], [20, 0, 0], [40, 0, 0], [7, 7, 7]])
    assert parcels.space == "MNI152"
    assert image_parcels([2], CENTRES[:1], "x.nii", []).names == ["parcel-2"]
    with_background: list[ParcelRow] = [("none", 0, (np.nan,) * 3), ("two", 2, (0.0, 0, 0))]
    assert image_parcels([2], CENTRES[:1], "x.nii", with_background).names == ["two"]


def test_a_table_of_other_labels_or_places_is_refused() -> None:
    from_zero: list[ParcelRow] = [(f"p{i}", i, (np.nan,) * 3) for i in (0, 1, 2)]
    with pytest.raises(RecordingError, match="counts from 0 and has no 3") as error:
        image_parcels([1, 2, 3], CENTRES, "x.nii", from_zero)
    assert error.value.reason == "parcels-mismatch"
    for away, sound in ((40.0, True), (40.1, False)):  # half of them: the third may be anywhere
        rows: list[ParcelRow] = [("a", 1, (0.0, away, 0)), ("b", 2, (20.0, 0, away)), ("c", 3, (0.0, 0, 0))]
        if sound:
            assert image_parcels([1, 2, 3], CENTRES, "x.nii", rows).names == ["a", "b", "c"]
        else:
            with pytest.raises(RecordingError, match="lie 40 mm from those of its labels, expected at most 40 mm"):
                image_parcels([1, 2, 3], CENTRES, "x.nii", rows)


def test_a_label_of_zero_is_a_parcel_unless_it_is_called_background(tmp_path: Path) -> None:
    path = tmp_path / "seg-A_dseg.tsv"
    write_tsv(path, ("index", "name", "r", "a", "s"), [(0, "Unknown", 1, 2, 3), (1, "???", 4, 5, 6), (2, "b", 7, 8, 9)])
    assert parcel_table(path) == [("???", 1, (4.0, 5.0, 6.0)), ("b", 2, (7.0, 8.0, 9.0))]
    write_tsv(path, ("index", "name"), [(0, "V1"), (1, "V2")])
    assert [row[:2] for row in parcel_table(path)] == [("V1", 0), ("V2", 1)]
    write_tsv(path, ("index",), [(3,), (4,)])
    assert [row[:2] for row in parcel_table(path)] == [("3", 3), ("4", 4)]
    write_tsv(path, ("index", "name"), [("1.5", "a")])
    with pytest.raises(RecordingError, match=r"row 1: .*expected an integer index and x, y, z in mm"):
        parcel_table(path)


def test_tables_beside_a_label_image(tmp_path: Path) -> None:
    image = tmp_path / "Schaefer2018_4Parcels_7Networks_order_FSLMNI152_2mm.nii.gz"
    assert table_beside(image) == []
    (tmp_path / f"{image.name.split('.')[0]}.xml").write_text("<a><label><index>3</index><name>x</name></label></a>")
    assert [row[:2] for row in table_beside(image)] == [("x", 3)]
    (tmp_path / "Schaefer2018_4Parcels_7Networks_order.txt").write_text("1\tLH_Vis_1\t120\t18\n\n2\tRH_Vis_1\t1\t2\n")
    assert [row[:2] for row in table_beside(image)] == [("LH_Vis_1", 1), ("RH_Vis_1", 2)]
    write_tsv(tmp_path / f"{image.name.split('.')[0]}.tsv", ("index", "name"), [(9, "own")])
    assert [row[:2] for row in table_beside(image)] == [("own", 9)]


def test_columns_that_are_labels_of_a_few_parcels_are_those_and_the_others_are_nan() -> None:
    x_TP, parcels = place_columns(X_TP[:, :2], ["Mean_4", "Mean_1"], ROWS, "a.tsv")
    np.testing.assert_array_equal(x_TP[:, [0, 2]], X_TP[:, [1, 0]])
    assert np.isnan(x_TP[:, 1]).all() and parcels.names == ["CC_1", "CC_2", "CC_4"]
    counted: list[ParcelRow] = [(f"CC_{i}", i, (1.0, 1, 1)) for i in (3, 2, 1)]
    np.testing.assert_array_equal(place_columns(X_TP, ["1", "2", "3"], counted, "a.tsv")[0], X_TP[:, ::-1])
    with pytest.raises(RecordingError, match="2 of 3 columns are none of the 3 parcels"):
        place_columns(X_TP, ["CC_1", "x", "y"], ROWS, "a.tsv")
