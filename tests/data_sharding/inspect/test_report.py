"""report.html says what the corpus holds and lost, needs nothing else, and stays small.

Covers: data_sharding/inspect/charts.py, data_sharding/inspect/survey.py
"""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import welch

from mcsp.commands.main import launcher
from mcsp.data_sharding.inspect import charts
from mcsp.data_sharding.inspect.report import REPORT_NAME, index_table, make_page, write_report
from mcsp.data_sharding.inspect.survey import FREQUENCIES, QUANTITIES, Group, _power, survey, table_groups
from mcsp.data_sharding.store.files import location
from mcsp.data_sharding.store.index import read_rejected
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.schema import Recording, Window

main = launcher("report")


class Page(HTMLParser):
    """What a browser would make of a page: tags, texts, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def corpus(built: Path) -> Corpus:
    return Corpus(built)


@pytest.fixture(scope="module")
def groups(corpus: Corpus) -> list[Group]:
    return survey(corpus)


def test_the_page_tells_every_site_and_reason_and_needs_no_other_file(corpus: Corpus, groups: list[Group]) -> None:
    text = make_page(corpus.index, groups, read_rejected(corpus.path))
    page = Page(text)
    assert page.open == []
    said = " ".join(page.texts)
    for site, counts in corpus.index["totals"]["sites"].items():
        row = re.search(rf"<tr>(?:(?!</tr>).)*>{site}<.*?</tr>", text, re.DOTALL)
        assert row is not None
        numbers = re.findall(r'<td class="n">([\d,.]+)', row.group())
        assert numbers[:4] == [str(counts[k]) for k in ("found", "recordings", "rejected", "subjects")]
        assert ("simulated" in row.group()) == counts["simulated"]
    for reason, n in corpus.index["reasons"].items():
        assert re.search(rf'<b>{reason}</b>.*?<td class="n">{n}</td>', text, re.DOTALL), reason
    for expected in ("t_r 1.5 s", "200 Hz", corpus.index_hash, f"mne {corpus.index['software']['mne']}", '"eeg"'):
        assert expected in said, expected
    used = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(value and value.startswith("#") for value in used)
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {value[1:] for value in used if value} <= targets
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) > 10
    assert all(len(attrs["aria-label"] or "") > 20 for attrs in pictures)
    assert (
        "url(" not in text and "@import" not in text and "<script" not in text and not re.search(r"\b(nan|inf)\b", text)
    )


def test_the_page_is_the_same_every_time_and_the_launcher_writes_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_report(copied).read_bytes()
    (copied / REPORT_NAME).unlink()
    assert main([str(copied)]) == 0
    assert Path(capsys.readouterr().out.strip()).read_bytes() == first
    assert main([str(copied / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_corpus_on_an_object_store_gets_the_same_report(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = location("memory://reported/corpus")
    for file in built.rglob("*"):
        if file.is_file() and ".build" not in file.parts:
            (remote / file.relative_to(built).as_posix()).write_bytes(file.read_bytes())
    (remote / REPORT_NAME).unlink()
    assert main([str(remote)]) == 0, capsys.readouterr().err
    assert (remote / REPORT_NAME).read_bytes() == (built / REPORT_NAME).read_bytes()


def test_spectra_and_traces_are_those_of_the_recordings(corpus: Corpus, groups: list[Group]) -> None:
    eeg = next(g for g in groups if (g.site, g.modality) == ("paired", "eeg"))
    assert eeg.quartiles_3F is not None
    assert eeg.n_spectra == len(eeg.rows) == 4
    # The test's EEG is 10 Hz at 20 uV; a Hann window of 4 s spreads its power over 1.5 bins of 0.25 Hz.
    peak = int(np.argmax(eeg.quartiles_3F[1]))
    assert FREQUENCIES["eeg"][peak] == 10
    expected = [np.median(corpus.read_window(r, 0, r.n_samples).x_TC.var(axis=0)) / (1.5 * 0.25) for r in
                (corpus.recordings[int(row)] for row in eeg.rows)]  # fmt: skip
    assert eeg.quartiles_3F[1, peak] == pytest.approx(np.median(expected), rel=0.1)
    for window in eeg.examples:
        again = corpus.read_window(window.recording, window.start, len(window.x_TC))
        np.testing.assert_array_equal(window.x_TC, again.x_TC)


def test_power_is_that_of_scipy(corpus: Corpus) -> None:
    recording = corpus.recordings[0]
    x_TC = corpus.read_window(recording, 0, recording.n_samples).x_TC + np.arange(recording.n_samples)[:, None]
    x_CT = x_TC[:, np.asarray(recording.channel_good)].T.astype(np.float64)
    length = round({"eeg": 4.0, "fmri": 128.0}[recording.modality] * recording.sfreq)
    frequencies, power_CF = welch(x_CT, recording.sfreq, nperseg=min(length, x_CT.shape[1]), detrend="linear")
    wanted = FREQUENCIES[recording.modality]
    expected = np.interp(wanted, frequencies, np.median(power_CF, axis=0), left=np.nan, right=np.nan)
    np.testing.assert_allclose(_power(Window(x_TC, recording, 0)), expected, rtol=1e-9)


def test_a_damaged_shard_costs_its_charts_only(copied: Path) -> None:
    corpus = Corpus(copied)
    r = next(r for r in corpus.recordings if r.site == "paired" and r.modality == "eeg")
    shard = copied / "shards" / r.shard
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[r.byte_offset + r.n_samples * r.n_channels] ^= 255
    shard.write_bytes(content)
    assert "cannot be read" in make_page(corpus.index, survey(corpus), read_rejected(corpus.path))


def row(i: int, site: str, **values: object) -> Recording:
    base = Recording(
        key=f"{site}_{i:016x}", shard="train-00000.tar", member=f"{site}_{i:016x}.eeg-0.npy", modality="eeg", site=site,
        subject=f"{i:016x}", session="", task="rest", run="", split="train", sfreq=200.0, unit="uV", scale=1.0,
        n_samples=60_000 + 200 * i, n_channels=2, dtype="float16", byte_offset=0, crc_offset=0, block_samples=2000,
        simulated=False, onset_seconds=float("nan"), channels=["C3", "C4"], positions_mm=[0.0] * 6,
        channel_good=[True, True], valid_spans=[0, 60_000],
    )  # fmt: skip
    return replace(base, **values)  # type: ignore[arg-type]


def test_columns_are_counted_as_rows_would_be() -> None:
    rows = [row(i, "ab"[i % 2], n_channels=2 + i % 3, sfreq=200.0 if i % 7 else 100.0) for i in range(500)]
    rows = [replace(r, quality=json.dumps({"amplitude": i / 10} if i % 5 else {})) for i, r in enumerate(rows)]
    groups = table_groups(Recordings.of(rows))
    assert [(g.site, g.modality) for g in groups] == [("a", "eeg"), ("b", "eeg")]
    for group in groups:
        own = [r for r in rows if r.site == group.site]
        assert [rows[i] for i in group.rows] == own
        assert group.hours == pytest.approx(sum(r.seconds for r in own) / 3600)
        assert dict(group.channels) == {n: sum(r.n_channels == n for r in own) for n in (2, 3, 4)}
        assert group.sfreq[100.0] == sum(r.sfreq == 100 for r in own)
        known = [q["amplitude"] for r in own if (q := json.loads(r.quality))]
        np.testing.assert_allclose(group.values["amplitude"], known, rtol=1e-6)
        assert "mean_fd_mm" not in group.values and "bad_channels" not in group.values


def test_fifty_sites_stay_below_five_megabytes(corpus: Corpus, groups: list[Group]) -> None:
    rng = np.random.default_rng(0)
    channels = {"n_channels": 64, "channels": [f"E{c}" for c in range(64)], "channel_good": [c > 3 for c in range(64)]}
    many, sites = [], {}
    for group in (g for g in groups if g.site == "paired"):
        values = {q.name: rng.gamma(2, size=1000) for q in QUANTITIES if group.modality in q.title}
        shape = (3, len(FREQUENCIES[group.modality]))
        power = np.sort(rng.gamma(2, size=shape), axis=0)
        r = replace(group.examples[0].recording, **channels)
        examples = [Window(rng.standard_normal((2000, 64)).astype(np.float32), r, 0) for _ in group.examples]
        for i in range(50):
            full = replace(group, site=f"site-number-{i:02d}", values=values, quartiles_3F=power, examples=examples)
            sites[full.site] = corpus.index["totals"]["sites"]["paired"]
            many.append(full)
    assert len(many) == 100 and all(len(g.examples) == 2 for g in many)
    index = {**corpus.index, "totals": {**corpus.index["totals"], "sites": sites}}
    n_bytes = len(make_page(index, many, read_rejected(corpus.path)).encode())
    assert n_bytes < 5_000_000, n_bytes


def test_what_stands_out_is_listed(corpus: Corpus, groups: list[Group]) -> None:
    eeg = next(g for g in groups if g.modality == "eeg")
    fmri = next(g for g in groups if g.modality == "fmri")
    sites = [
        replace(eeg, site=s, values={"amplitude": np.full(3, a)}) for s, a in (("x", 10.0), ("y", 11.0), ("z", 90.0))
    ]
    sites.append(replace(fmri, site="w", values={"mean_fd_mm": np.full(3, 0.8)}))
    text = make_page(corpus.index, sites, read_rejected(corpus.path))
    assert "z: EEG amplitude 90" in text and "x: EEG amplitude" not in text
    assert "w: median framewise displacement 0.80 mm" in text
    assert "damaged: " in text  # quarantined above the share


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 9, False, [0, 2, 4, 6, 8]),
        (-1, 1, False, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, False, [3]),
        (0.5, 100, True, [1, 3, 10, 30, 100]),
        (1, 10, True, [1, 2, 5, 10]),
        (1e-6, 1e6, True, [1e-6, 1e-3, 1, 1e3, 1e6]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, log: bool, expected: list[float]) -> None:
    ticks = charts.Scale(low, high, 0, 100, log).ticks()
    assert len(ticks) <= 6
    assert ticks == pytest.approx(expected)


def test_histograms_hold_every_value_once() -> None:
    everything = np.concatenate([np.linspace(1, 50, 99), [1e9]])
    edges, log = charts.bins(everything, whole=False)
    assert log and (np.diff(edges) > 0).all()
    whole, log = charts.bins(np.array([0, 1, 1, 5]), whole=True)
    assert not log and set(np.diff(whole)) == {1.0} and whole[0] == -0.5 and whole[-1] >= 5.5
    for same in (np.zeros(5), np.full(5, 7.0)):
        edges, _ = charts.bins(same, whole=False)
        assert (np.diff(edges) > 0).all()
        picture = charts.histogram(same, same, edges, False, "t", "s")
        assert re.search(r'class="bar" d="M[^M]+"', picture)  # a single bar


def test_the_terminal_table_is_aligned(corpus: Corpus) -> None:
    lines = index_table(corpus.index).splitlines()
    assert lines[0].split() == ["site", "found", "stored", "rejected", "subjects", "hours"]
    assert len({len(line) for line in lines[: 2 + len(corpus.index["totals"]["sites"])]}) == 1
