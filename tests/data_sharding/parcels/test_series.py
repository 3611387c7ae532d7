"""Tables of time series: the numbers of every format, and one line for whatever is no such table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.parcels.series import _plain_table, check_names, read_series

NAMES = ["left", "right", "middle"]


def values_TP(volumes: int = 12) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((volumes, 3)).round(6)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def text_of(x_TP: np.ndarray, separator: str = "\t", header: str = "", newline: str = "\n") -> str:
    rows = [separator.join(map(str, row)) for row in x_TP]
    return newline.join([*([header] if header else []), *rows]) + newline


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("a.tsv", text_of(values_TP(), "\t", "\t".join(NAMES)), NAMES),
        ("a.tsv", text_of(values_TP(), "\t", "\t".join(NAMES), "\r\n"), NAMES),
        ("a.tsv", "\ufeff" + text_of(values_TP(), "\t", "1\t2\t3"), ["1", "2", "3"]),
        ("a.tsv", text_of(values_TP(), "\t", "\t".join(NAMES), "\t\n")[:-2] + "\t\n", NAMES),  # a tab at each end
        ("a.csv", text_of(values_TP(), ",", ",".join(NAMES)), NAMES),
        ("a.csv", text_of(values_TP(), ","), None),
        ("a.csv", text_of(values_TP(), ",", "0,1,2"), ["0", "1", "2"]),
        ("a.1D", text_of(values_TP(), "\t", "#1\t#2\t#3"), ["1", "2", "3"]),
        ("a.1D", text_of(values_TP(), "  ", "# 3dmaskave -quiet"), None),
        (
            "a.1D",
            "# made by C-PAC\n" + text_of(values_TP(), ",", "#Mean_1,Mean_2,Mean_3"),
            ["Mean_1", "Mean_2", "Mean_3"],
        ),
        ("a.txt", text_of(values_TP(), " "), None),
    ],
)
def test_the_numbers_and_names_are_those_of_the_file(
    tmp_path: Path, name: str, text: str, names: list[str] | None
) -> None:
    found_TP, found = read_series(written(tmp_path / name, text))
    np.testing.assert_array_equal(found_TP, values_TP())
    assert found == names


def test_arrays_and_tables_of_pandas_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values_TP().astype(np.float32))
    np.testing.assert_allclose(read_series(tmp_path / "a.npy")[0], values_TP(), rtol=1e-6)
    frame = pd.DataFrame(values_TP(), columns=NAMES)
    frame.iloc[3, 1] = np.nan
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False, na_rep="n/a")
    found_TP, names = read_series(tmp_path / "a.tsv")
    np.testing.assert_array_equal(found_TP, frame.to_numpy())
    assert names == NAMES


def test_plain_tables_are_read_by_arrow_to_the_bit_of_python_and_any_other_the_long_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x_TP = rng.standard_normal((300, 40)) * 10.0 ** rng.integers(-30, 30, (300, 40))
    x_TP[0, :4], x_TP[1, :3] = (
        (5e-324, 1.7976931348623157e308, 2.2250738585072014e-308, -0.0),
        (np.nan, np.inf, -np.inf),
    )
    names = [f"p{i}" for i in range(40)]
    for form in ("{!r}", "{:.6g}", "{:.18e}"):
        cells = [[form.format(float(value)) for value in row] for row in x_TP]
        text = "\n".join(["\t".join(row) for row in [names, *cells]]) + "\n"
        plain = _plain_table(text.encode(), ".tsv")
        assert plain is not None and plain[1] == names
        np.testing.assert_array_equal(plain[0].view(np.int64), np.array(cells, dtype=np.float64).view(np.int64))
        found_TP, found = read_series(written(tmp_path / "a.tsv", text[:-1]))  # without its last end of line
        np.testing.assert_array_equal(found_TP, plain[0])
        assert found == names
    others = (
        "1\t2\n3\n4\t5\t6\n",
        "1\t2\n3\t\n",
        "1\t2\n3\tx\n",
        "1\t2\n\n",
        "1\t 2\n",
        "1\t2\r\n",
        "1\t\0002\n",
        "1\b2\n",
        "",
    )
    for body in others:
        assert _plain_table(f"a\tb\n{body}".encode(), ".tsv") is None, body
    assert _plain_table(b"", ".tsv") is None and _plain_table(b"1\t2\n", ".1D") is None


HEADER = "\t".join(NAMES)
FAULTS = {
    "no header": ("a.tsv", text_of(values_TP()), "the first line holds values"),
    "no header, whole numbers": ("a.tsv", "1003\t998\t1010\n" + text_of(values_TP()), r"holds values \(1003\)"),
    "a name twice": ("a.tsv", text_of(values_TP(), "\t", "left\tleft\tmiddle"), "'left' is the name of 2 parcels"),
    "an index column": ("a.tsv", text_of(values_TP(), "\t", "\tleft\tright"), "column 1 has no name"),
    "commas": ("a.tsv", text_of(values_TP(), ",", ",".join(NAMES)), "columns are separated by ',', expected a tab"),
    "decimal commas": (
        "a.tsv", text_of(values_TP(), "\t", HEADER).replace(".", ","), "line 2, column 1 holds .* with a decimal comma"
    ),
    "text": ("a.tsv", f"{HEADER}\n1\t2\t3\n4\tx\t6\n", "line 3, column 2 holds 'x', expected one number per volume"),
    "names in a column": ("a.tsv", "name\t0\t1\nleft\t1.5\t2\nright\t2\t3\n", "values|holds 'left'"),
    "a short row": ("a.tsv", f"{HEADER}\n1\t2\t3\n4\t5\n", "line 3 has 2 cells, expected 3"),
    "a gap": ("a.tsv", f"{HEADER}\n1\t2\t3\n\n4\t5\t7\n", "line 3 is empty"),
    "rows counted": (
        "a.tsv", text_of(np.column_stack([np.arange(12), values_TP()[:, :2]]), "\t", "time\tleft\tright"),
        "column 'time' counts the rows",
    ),
    "rounded times with a gap": (
        "a.tsv",
        text_of(np.column_stack([np.round(np.delete(np.arange(30), 9) * 1.6567, 2), *2 * [np.arange(29) % 3]])
                , "\t", "time\tleft\tright"),
        "column 'time' counts the rows",
    ),
    "no text at all": ("a.npy", "no array", "a.npy"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_no_such_table_is_refused_by_what_is_wrong(tmp_path: Path, what: str) -> None:
    name, text, pattern = FAULTS[what]
    with pytest.raises(RecordingError, match=pattern) as error:
        read_series(written(tmp_path / name, text))
    assert error.value.reason == "bad-table"
    assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)


def test_an_array_of_another_shape_and_a_table_of_another_encoding_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5)))
    with pytest.raises(RecordingError, match=r"float64 \(3, 4, 5\), expected numbers of shape"):
        read_series(tmp_path / "a.npy")
    with pytest.raises(RecordingError) as error:
        read_series(written(tmp_path / "a.tsv", "größe\tb\n1\t2\n", "latin-1"))
    assert error.value.reason == "bad-encoding"


def test_of_values_in_the_first_line_the_first_is_shown() -> None:
    with pytest.raises(RecordingError, match=r"a.tsv: the first line holds values \(1.5\), expected the names"):
        check_names(["left", "1.5", "-2.5", "nan"], "a.tsv")


def test_a_column_that_rises_by_uneven_steps_counts_the_rows_from_twenty_two_rows_on(tmp_path: Path) -> None:
    """Fewer may be a drift; by even steps four are enough."""
    rising_T = np.arange(22.0) ** 1.5
    for rows in (21, 22):
        path = written(tmp_path / "a.tsv", text_of(np.c_[rising_T, values_TP(22)[:, :2]][:rows], "\t", HEADER))
        if rows == 21:
            assert read_series(path)[1] == NAMES
        else:
            with pytest.raises(RecordingError, match="column 'left' counts the rows"):
                read_series(path)


@pytest.mark.parametrize(
    ("times", "refused"),
    [
        ([0, 2, 4, 6], True), ([0, 2, 4], False), ([0, 2, 4, 6.01], False), ([1, 3, 5 + 9e-7, 7], True),
        ([1, 3, 5 + 3e-6, 7], False), ([6, 4, 2, 0], False), ([0, 0, 1, 2], False),
        ([*range(15), 3, *range(15, 30)], False), ([*range(25), 3], False),
    ],
)  # fmt: skip
def test_four_rows_that_rise_by_even_steps_are_times(tmp_path: Path, times: list[float], refused: bool) -> None:
    """To a millionth; with a step back it is a parcel."""
    x_TP = np.c_[values_TP(len(times))[:, :2], times]
    path, plain = (
        written(tmp_path / "a.tsv", text_of(x_TP, "\t", HEADER)),
        written(tmp_path / "a.csv", text_of(x_TP, ",")),
    )
    if not refused:
        np.testing.assert_array_equal(read_series(path)[0], x_TP)
        return
    for file, name in ((path, "'middle'"), (plain, "3")):
        with pytest.raises(RecordingError, match=f"{file.name}: column {name} counts the rows, expected parcels"):
            read_series(file)


@pytest.mark.parametrize(
    ("names", "sound"),
    [
        ("1 2 3", True), ("0 2 3", True), ("2 3 5", False), ("1 3 2", False), ("1 1 2", False), ("5", True),
        ("5 6 7 8 9 10 11", False), ("5 6 7 8 9 10 11 12", True), ("5 6 7 8 9 10 11 11", False), ("1.5", False),
        ("a 2", True), ("a n/a", False),
    ],
)  # fmt: skip
def test_whole_numbers_that_rise_are_labels_and_not_values(names: str, sound: bool) -> None:
    """From 0 or 1 on, or eight of them."""
    if sound:
        check_names(names.split(), "a.tsv")
    else:
        with pytest.raises(RecordingError, match="the first line holds values"):
            check_names(names.split(), "a.tsv")


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("#a b\n1 2\n3 5\n", ["a", "b"], [[1, 2], [3, 5]]),
        ("# a\n1\n2\n", None, [[1], [2]]),  # of a single column a comment is no name
        ("# a b c\n1 2\n", None, [[1, 2]]),
        ("# made by\n# a,b\n1,2 # the first\n3,5\n", ["a", "b"], [[1, 2], [3, 5]]),
        ("1 2\n# between\n3 5\n", None, "line 2 is empty, expected a volume in every line"),
        ("# a b\n", None, []),
    ],
)
def test_comments_of_afni(tmp_path: Path, text: str, names: list[str] | None, rows: list[list[float]] | str) -> None:
    path = written(tmp_path / "a.1D", text)
    if isinstance(rows, str):
        with pytest.raises(RecordingError, match=rows):
            read_series(path)
        return
    found_TP, found = read_series(path)
    assert found_TP.tolist() == rows and found == names


def test_cells_that_are_empty_are_nan_in_any_word_for_it(tmp_path: Path) -> None:
    text = f"{HEADER}\n1\tn/a\t3\nNA\t2\tNaN\n\tnan\t 5\n"
    expected = [[1, np.nan, 3], [np.nan, 2, np.nan], [np.nan, np.nan, 5]]
    np.testing.assert_array_equal(read_series(written(tmp_path / "a.tsv", text))[0], expected)
    for cells in ("1\t2", "1\t2\t3\t4"):
        with pytest.raises(RecordingError, match=f"line 2 has {len(cells.split())} cells, expected 3"):
            read_series(written(tmp_path / "a.tsv", f"{HEADER}\n{cells}\nx\t1\t2\n"))


def test_a_table_of_names_alone_has_no_volumes(tmp_path: Path) -> None:
    for text in (f"{HEADER}\n", HEADER, f"{HEADER}\n\n \n"):
        found_TP, names = read_series(written(tmp_path / "a.tsv", text))
        assert found_TP.shape == (0, 3) and names == NAMES
    assert read_series(written(tmp_path / "a.tsv", ""))[1] == []
    with pytest.raises(RecordingError, match="2 columns below 3 names, expected as many"):
        read_series(written(tmp_path / "a.tsv", f"{HEADER}\n1\t2\n3\t4\n"))
    with pytest.raises(RecordingError, match="the first line is empty, expected the names"):
        read_series(written(tmp_path / "a.tsv", "\t\n1\t2\n"))


@pytest.mark.parametrize(
    ("values", "sound"),
    [(np.ones((3, 2), np.uint8), True), (np.ones((3, 2), ">f8"), True), (np.ones(3), False),
     (np.ones((3, 2), bool), False), (np.ones((3, 2), complex), False), (np.array([["a", "b"]]), False)],
)  # fmt: skip
def test_an_array_is_of_numbers_by_volume_and_parcel(tmp_path: Path, values: np.ndarray, sound: bool) -> None:
    np.save(tmp_path / "a.npy", values)
    if sound:
        found_TP, names = read_series(tmp_path / "a.npy")
        assert found_TP.dtype == np.float64 and names is None and (found_TP == 1).all()
    else:
        with pytest.raises(RecordingError, match="expected numbers of shape") as error:
            read_series(tmp_path / "a.npy")
        assert error.value.reason == "bad-table"
    np.savez(tmp_path / "b.npz", values)
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(RecordingError, match="NpzFile, expected numbers"):
        read_series(tmp_path / "b.npy")
