"""Manifests as people write them: other names of columns, marks in labels, and one line for what cannot be used."""

from pathlib import Path

import pytest

from mcsp.data_sharding.convert.to_bids import Row, read_manifest


def manifest(folder: Path, text: str, name: str = "files.tsv") -> Path:
    for file in ("a.tsv", "b.csv", "c.edf", "d.nii.gz", "e.ptseries.nii", "f.mat"):
        (folder / file).touch()
    (folder / name).write_text(text)
    return folder / name


def rows(folder: Path, text: str, name: str = "files.tsv") -> list[Row]:
    return read_manifest(manifest(folder, text, name))


def test_columns_by_any_of_their_names_and_the_rest_as_labels(tmp_path: Path) -> None:
    table = "filename\tparticipant_id\tses\tsite\ttr\tdiagnosis\tage\n"
    table += "a.tsv\tsub-01\tses-pre\tnyu\t2.0\tcase\t34\n"
    table += "b.csv\t01_x\tpost\tnyu\t0.8\tcase\tn/a\n"
    first, second = rows(tmp_path, table)
    assert (first.path, first.kind, first.site, first.subject) == (tmp_path / "a.tsv", "table", "nyu", "01")
    assert (first.session, first.task, first.run, first.seconds_per_sample) == ("pre", "rest", "", 2.0)
    assert first.labels == {"diagnosis": "case", "age": "34"} and first.stem == "sub-01_ses-pre_task-rest"
    assert (second.subject, second.session, second.labels) == ("01x", "post", {"diagnosis": "case"})


@pytest.mark.parametrize(
    "header",
    [
        "path subject session site task run t_r",
        "Filename participant_id session_id SITE_ID task_name Run TR",
        "file SUB_ID ses Site TASK run_id RepetitionTime",
        "FilePath Subject-ID Session site Task run repetition_time",
    ],
)
def test_a_column_is_known_by_any_usual_spelling(tmp_path: Path, header: str) -> None:
    table = "\t".join(header.split()) + "\tDiagnosis\na.tsv\t01\tpre\tnyu\trest\t2\t1.5\tcase\n"
    (row,) = rows(tmp_path, table)
    assert (row.subject, row.session, row.site, row.task, row.run) == ("01", "pre", "nyu", "rest", "2")
    assert row.seconds_per_sample == 1.5 and row.labels == {"Diagnosis": "case"}


def test_two_columns_that_say_one_thing_must_agree(tmp_path: Path) -> None:
    assert rows(tmp_path, "path\tsub\tTR\tRepetitionTime\na.tsv\t1\t2.0\t2.0\n")[0].seconds_per_sample == 2.0
    assert rows(tmp_path, "path\tsub\tTR\tt_r\na.tsv\t1\t\t2.0\n")[0].seconds_per_sample == 2.0
    with pytest.raises(ValueError, match=r"row 1: TR '2' and t_r '2000' differ, expected one column of t_r"):
        rows(tmp_path, "path\tsub\tTR\tt_r\na.tsv\t1\t2\t2000\n")


def test_every_kind_of_file_and_its_rate(tmp_path: Path) -> None:
    table = "path,subject,task,run,sampling_rate,t_r,site\n"
    table += "c.edf,1,task-eyes_open,run-1,250,,\nd.nii.gz,1,,,0.5,,\ne.ptseries.nii,2,,,0.5,2,\n"
    found = rows(tmp_path, table, "files.csv")
    assert [(r.kind, r.seconds_per_sample, r.site) for r in found] == [
        ("eeg", 0.004, "site"), ("image", 2.0, "site"), ("ptseries", 2.0, "site")
    ]  # fmt: skip
    assert found[0].stem == "sub-1_task-eyesopen_run-1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("\t1\t2\t\t", "row 2: no path, expected a column of that name with a value in every row"),
        ("a.tsv\t\t2\t\t", "row 2: no subject"),
        ("gone.tsv\t1\t2\t\t", "row 2: .*gone.tsv: no such file"),
        ("f.mat\t1\t2\t\t", r"row 2: f.mat: expected one of .edf, .*, .ptseries.nii"),
        ("a.tsv\tüx\t2\t\t", "row 2: subject 'üx': expected letters and digits"),
        ("a.tsv\t--\t2\t\t", "row 2: subject '--': expected letters and digits"),
        ("a.tsv\t1\t2\t\ta/b", "row 2: site 'a/b': expected letters, digits"),
        ("a.tsv\t1\t\t\t", "row 2: no t_r, expected seconds: a.tsv"),
        ("a.tsv\t1\t2000\t\t", r"row 2: t_r 2000 \(milliseconds\?\), expected"),
        ("a.tsv\t1\t2,0\t\t", "row 2: t_r '2,0': expected a number with a decimal point"),
        ("a.tsv\t1\t-2\t\t", "row 2: t_r -2: expected a positive number"),
        ("a.tsv\t1\t0\t\t", "row 2: t_r 0: expected a positive number"),
        ("a.tsv\t1\tnan\t\t", "row 2: t_r nan: expected a positive number"),
        ("a.tsv\t1\t2\t0.51\t", "row 2: t_r 2 s and sampling_rate 0.51 Hz differ"),
        ("c.edf\t1\t2\t\t", "row 2: no sampling_rate, expected Hz: c.edf"),
        ("a.tsv\t1\t2\t0.5051\t", r"row 2: t_r 2 s and sampling_rate 0\.5051 Hz differ"),
        ("b.csv\t9\t2\t\t", "site site: sub-9_task-rest comes more than once, expected a session or run for each"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_row(tmp_path: Path, line: str, message: str) -> None:
    header = "path\tsubject\tt_r\tsampling_rate\tsite\n"
    with pytest.raises(ValueError, match=message) as error:
        rows(tmp_path, f"{header}a.tsv\t9\t2\t\t\n{line}\n")
    assert "\n" not in str(error.value) and str(error.value).startswith("files.tsv: ")


def test_a_rate_that_agrees_to_a_hundredth_is_taken_and_more_faults_are_counted(tmp_path: Path) -> None:
    header = "path\tsubject\tt_r\tsampling_rate\n"
    assert rows(tmp_path, f"{header}a.tsv\t9\t2\t0.503\n")[0].seconds_per_sample == 2.0
    with pytest.raises(ValueError, match=r"row 1: no subject.* \(and 2 more rows\)"):
        rows(tmp_path, header + "a.tsv\t\t2\t\n" * 3)
    with pytest.raises(ValueError, match="expected a row per recording, found none"):
        rows(tmp_path, header)
    with pytest.raises(ValueError, match=r"files.xlsx: expected a table, .tsv or .csv"):
        rows(tmp_path, header, "files.xlsx")


def test_a_rate_may_be_a_hundredth_off_and_no_more(tmp_path: Path) -> None:
    header = "path\tsubject\tt_r\tsampling_rate\n"
    assert rows(tmp_path, f"{header}a.tsv\t9\t2\t0.5049\n")[0].seconds_per_sample == 2.0
    assert rows(tmp_path, f"{header}c.edf\t9\t0.004\t252\n")[0].seconds_per_sample == 1 / 252, "of EEG the rate"
    assert rows(tmp_path, f"{header}a.tsv\t9\t\t0.5\n")[0].seconds_per_sample == 2.0
    assert rows(tmp_path, f"{header}a.tsv\t9\t0.5\t\n")[0].seconds_per_sample == 0.5


def test_one_person_may_have_eeg_and_bold_of_one_name_and_no_two_of_either(tmp_path: Path) -> None:
    header = "path\tsubject\tt_r\tsampling_rate\tsite\tsession\n"
    both = rows(tmp_path, f"{header}a.tsv\t9\t2\t\t\t\nc.edf\t9\t\t250\t\t\n")
    assert both[0].stem == both[1].stem == "sub-9_task-rest"
    other = f"{header}a.tsv\t9\t2\t\tx\t1\nb.csv\t9\t2\t\ty\t1\nd.nii.gz\t9\t2\t\tx\t2\n"
    assert [row.stem for row in rows(tmp_path, other)] == [f"sub-9_ses-{n}_task-rest" for n in (1, 1, 2)]
    with pytest.raises(ValueError, match=r"^files\.tsv: site x: sub-9_ses-1_task-rest comes more than once, .*each$"):
        rows(tmp_path, f"{other}d.nii.gz\tsub-9\t2\t\tx\tses-1\n")


def test_all_that_a_row_says_of_its_recording_is_kept(tmp_path: Path) -> None:
    table = "path,subject,t_r,space,units,line_hz,session,run,site,age\n"
    table += " a.tsv ,1,2,MNI152NLin6Asym,percent,,,01,A_b-2, 34 \n"
    table += "c.edf,1,0.01,,,60,,,A_b-2,\n"
    with pytest.raises(ValueError, match=r"row 2: no sampling_rate, expected Hz: c\.edf"):
        rows(tmp_path, table, "files.csv")
    bold, eeg = rows(tmp_path, table.replace("t_r,", "sfreq,").replace("1,2,", "1,.5,").replace("0.01", "100"), "f.csv")
    assert (bold.space, bold.units, bold.line_hz, bold.run) == ("MNI152NLin6Asym", "percent", "", "01")
    assert (bold.path, bold.labels, bold.site) == (tmp_path / "a.tsv", {"age": " 34 "}, "A_b-2")
    assert (eeg.line_hz, eeg.seconds_per_sample, eeg.labels, eeg.kind) == ("60", 0.01, {}, "eeg")
    for site in ("-a", "_a", "a b"):
        with pytest.raises(ValueError, match=f"site '{site}': expected letters"):
            rows(tmp_path, f"path\tsubject\tt_r\tsite\na.tsv\t1\t2\t{site}\n")
