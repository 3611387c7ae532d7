"""Batches: windows of any montage, rate and length side by side, with everything that is not data masked."""

import io
import math
import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcsp import batch as batches
from mcsp.batch import Batch, as_one, collate, deviations, rows_of, valid_times
from mcsp.schema import UNITS, Modality, Recording, Window, text_key


def window(
    modality: Modality = "eeg",
    n_samples: int = 20,
    n_channels: int = 3,
    subject: str = "s1",
    site: str = "a",
    sfreq: float = 200.0,
    seed: int = 0,
    bad: tuple[int, ...] = (),
    unknown: tuple[int, ...] = (),
) -> Window:
    """A window of noise; channels in ``bad`` are marked so in the recording, those in ``unknown`` have no position."""
    random = np.random.default_rng(seed)
    positions = random.normal(0, 60, (n_channels, 3))
    positions[list(unknown)] = math.nan
    recording = Recording(
        key=f"{site}_{subject}",
        shard="train-000000.tar",
        member=f"{site}_{subject}.{modality}-0.npy",
        modality=modality,
        site=site,
        subject=subject,
        session="",
        task="rest",
        run="",
        split="train",
        sfreq=sfreq,
        unit=UNITS[modality],
        scale=1.0,
        n_samples=n_samples,
        n_channels=n_channels,
        dtype="float16",
        byte_offset=0,
        crc_offset=0,
        block_samples=2000,
        simulated=True,
        onset_seconds=math.nan,
        channels=[f"c{i}" for i in range(n_channels)],
        positions_mm=positions.ravel().tolist(),
        channel_good=[i not in bad for i in range(n_channels)],
        valid_spans=[0, n_samples],
    )
    return Window(random.normal(0, 10, (n_samples, n_channels)).astype(np.float32), recording, 0)


def test_windows_of_different_shapes_are_padded_with_masked_zeros() -> None:
    small, large = window(n_samples=20, n_channels=3), window(n_samples=31, n_channels=5, sfreq=250.0, seed=1)
    signal = collate([[small], [large]]).signals["eeg"]
    assert signal.x_BCT.shape == (2, 5, 31)
    np.testing.assert_array_equal(signal.x_BCT[0, :3, :20].numpy(), small.x_TC.T)
    np.testing.assert_array_equal(signal.x_BCT[1].numpy(), large.x_TC.T)
    assert float(signal.x_BCT[0].abs().sum()) == pytest.approx(float(np.abs(small.x_TC).sum()), rel=1e-6)
    assert signal.channel_valid_BC.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert signal.time_valid_BT.sum(1).tolist() == [20, 31]
    assert signal.time_valid_BT[0, :20].all()
    assert signal.sfreq_B.tolist() == [200.0, 250.0]


def test_rows_know_their_sample_when_modalities_are_missing() -> None:
    eeg, fmri = window("eeg", subject="s1"), window("fmri", 10, 4, subject="s2", site="b", sfreq=0.5)
    both = [window("fmri", 12, 4, subject="s3", sfreq=0.5), window("eeg", subject="s3")]
    batch = collate([[eeg], [fmri], both], keys=[11, 12, 13])
    assert len(batch) == 3
    assert batch.keys == ("a_s1", "b_s2", "a_s3")
    assert batch.signals["eeg"].sample_B.tolist() == [0, 2]
    assert batch.signals["eeg"].key_B.tolist() == [11, 13]
    assert batch.signals["fmri"].sample_B.tolist() == [1, 2]
    assert batch.signals["fmri"].key_B.tolist() == [12, 13]
    assert batch.site_N.tolist() == [text_key("a"), text_key("b"), text_key("a")]


def test_a_modality_that_no_sample_has_is_absent() -> None:
    assert set(collate([[window("fmri", sfreq=0.5)]]).signals) == {"fmri"}


def test_subjects_of_different_sites_with_one_name_are_different() -> None:
    batch = collate([[window(site="a")], [window(site="b")], [window(site="a", seed=3)]])
    assert batch.subject_N[0] == batch.subject_N[2]
    assert batch.subject_N[0] != batch.subject_N[1]


def test_bad_channels_and_non_finite_values_are_masked_to_zero() -> None:
    cut = window(n_channels=4, bad=(1,))
    cut.x_TC[7, 2] = np.nan
    cut.x_TC[3, 3] = np.inf
    signal = collate([[cut]]).signals["eeg"]
    assert signal.channel_valid_BC.tolist() == [[True, False, False, False]]
    assert (signal.x_BCT[0, 1:] == 0).all()
    assert not signal.position_valid_BC[0, 1:].any()


def test_time_outside_the_valid_spans_is_masked_to_zero() -> None:
    whole = window(n_samples=50)
    recording = replace(whole.recording, valid_spans=[0, 12, 20, 33])
    cut = Window(whole.x_TC[10:40], recording, 10)
    signal = collate([[cut]]).signals["eeg"]
    assert signal.time_valid_BT[0].nonzero().flatten().tolist() == [0, 1, *range(10, 23)]
    assert (signal.x_BCT[0][:, ~signal.time_valid_BT[0]] == 0).all()
    np.testing.assert_array_equal(signal.x_BCT[0, :, 10:23].numpy(), whole.x_TC[20:33].T)


def test_an_unknown_position_is_zero_and_masked_while_its_channel_stays() -> None:
    signal = collate([[window(n_channels=3, unknown=(2,))]]).signals["eeg"]
    assert signal.channel_valid_BC.all()
    assert signal.position_valid_BC.tolist() == [[True, True, False]]
    assert signal.position_BC3[0, 2].tolist() == [0, 0, 0]
    assert torch.isfinite(signal.position_BC3).all()


@given(shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=5), data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    cuts = [window(n_samples=t, n_channels=c, subject=f"s{i}", seed=i) for i, (t, c) in enumerate(shapes)]
    i = data.draw(st.integers(0, len(cuts) - 1))
    t, c = shapes[i]
    together, alone = collate([[cut] for cut in cuts]).signals["eeg"], collate([[cuts[i]]]).signals["eeg"]
    assert torch.equal(together.x_BCT[i, :c, :t], alone.x_BCT[0])
    assert torch.equal(together.position_BC3[i, :c], alone.position_BC3[0])
    outside = together.x_BCT[i] * ~(together.channel_valid_BC[i][:, None] & together.time_valid_BT[i])
    assert not outside.any()


@pytest.mark.parametrize("samples", [[], [[]], [[window()], []]], ids=["no sample", "no window", "one without window"])
def test_samples_without_windows_are_refused(samples: list[list[Window]]) -> None:
    with pytest.raises(ValueError, match="expected samples with at least one window each, found"):
        collate(samples)


def test_two_windows_of_one_modality_in_a_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="two eeg windows, at most one is expected"):
        collate([[window(), window(seed=1)]])


def test_moving_a_batch_moves_every_tensor_but_the_rates_and_keeps_the_rest() -> None:
    batch: Batch = collate([[window(), window("fmri", 10, 4, sfreq=0.5)], [window(subject="s2")]], keys=[1, 2])
    moved = batch.to("meta")
    tensors = [moved.subject_N, moved.site_N]
    tensors += [x for s in moved.signals.values() for name, x in vars(s).items() if name != "sfreq_B"]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {signal.sfreq_B.device.type for signal in moved.signals.values()} == {"cpu"}, "a GPU would be waited for"
    assert moved.keys == batch.keys
    assert moved.signals["eeg"].x_BCT.shape == batch.signals["eeg"].x_BCT.shape


def test_replacing_a_tensor_leaves_the_original_alone() -> None:
    signal = collate([[window()]]).signals["eeg"]
    doubled = signal.replace(x_BCT=signal.x_BCT * 2)
    assert torch.equal(doubled.x_BCT, signal.x_BCT * 2)
    assert doubled.sfreq_B is signal.sfreq_B
    assert len(doubled) == len(signal) == 1


def test_a_window_as_stored_becomes_what_the_window_in_physical_units_does() -> None:
    whole = window(n_samples=50, n_channels=4, bad=(2,))
    stored = (whole.x_TC * 64).astype(np.float16)
    physical = stored.astype(np.float32) / 64
    kept = stored.copy()
    found, expected = (
        collate([[cut]]).signals["eeg"]
        for cut in (Window(stored, whole.recording, 0, 1 / 64), Window(physical, whole.recording, 0))
    )
    assert torch.equal(found.x_BCT, expected.x_BCT) and found.x_BCT.dtype == torch.float32
    doubled = collate([[Window(physical, whole.recording, 0, 2.0)]]).signals["eeg"]
    assert torch.equal(doubled.x_BCT, 2 * expected.x_BCT)
    np.testing.assert_array_equal(stored, kept)
    np.testing.assert_array_equal(physical, stored.astype(np.float32) / 64)


def test_between_processes_only_the_windows_are_sent_as_tensors() -> None:
    flat = window("eeg", subject="s2", bad=(0, 1, 2))
    batch = collate([[window("eeg", subject="s1"), window("fmri", 5, 4)], [flat]], [7, 8])
    assert batch.left_out == {"a": 1}
    sent: list[tuple[int, ...]] = []

    class Pickler(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                sent.append(tuple(value.shape))
            return NotImplemented

    stream = io.BytesIO()
    Pickler(stream).dump(batch)
    found: Batch = pickle.loads(stream.getvalue())
    assert sent == [(1, 4, 5), (2, 3, 20)]
    assert (found.keys, found.unreadable, found.left_out) == (batch.keys, batch.unreadable, batch.left_out)
    assert torch.equal(found.subject_N, batch.subject_N) and torch.equal(found.site_N, batch.site_N)
    for modality, signal in batch.signals.items():
        for f in fields(signal):
            before, after = getattr(signal, f.name), getattr(found.signals[modality], f.name)
            assert before.dtype == after.dtype and torch.equal(before, after), f.name


@pytest.mark.parametrize("what", ["flat", "zero", "NaN", "one channel is not flat", "spike", "loud", "nothing valid"])
def test_a_window_that_holds_nothing_or_what_cannot_be_keeps_an_invalid_row_and_is_counted(what: str) -> None:
    cut = window(n_samples=400, site="b")
    x_TC = cut.x_TC.copy()
    valid_spans = [0, 400]
    match what:
        case "flat":
            x_TC[:] = 7.0
        case "zero":
            x_TC[:] = 0.0
        case "NaN":
            x_TC[5] = np.nan
        case "one channel is not flat":
            x_TC[:, 1:] = 3.0
        case "spike":
            x_TC[399, 1] = 2e5  # noise of 10 uV
        case "loud":
            x_TC *= 1000
        case "nothing valid":
            valid_spans = [0, 0]
    bad = replace(cut, x_TC=x_TC, recording=replace(cut.recording, valid_spans=valid_spans))
    batch = collate([[window(n_samples=400)], [bad], [bad]], keys=[1, 2, 3])
    signal = batch.signals["eeg"]
    if what == "one channel is not flat":
        assert signal.row_valid_B.all() and batch.left_out == {}
        return
    assert signal.row_valid_B.tolist() == [True, False, False]
    assert batch.left_out == {"b": 2}
    assert (signal.x_BCT[1:] == 0).all() and not signal.position_valid_BC[1:].any()
    assert signal.sample_B.tolist() == [0, 1, 2] and signal.key_B.tolist() == [1, 2, 3]


def test_limits_of_loudness_and_distance_are_where_they_are_said_to_be() -> None:
    plain = window(n_samples=401, n_channels=1)
    ramp = np.linspace(-1, 1, 401)[:, None]  # robust deviation 1.4826 / 2

    def valid(x_TC: np.ndarray, unit: str) -> bool:
        cut = replace(plain, x_TC=x_TC.astype(np.float32), recording=replace(plain.recording, unit=unit))
        return bool(collate([[cut]]).signals["eeg"].row_valid_B)

    for unit, loudest in (("uV", 5000.0), ("percent", 100.0)):
        assert valid(ramp * 0.98 * loudest / 0.7413, unit) and not valid(ramp * 1.02 * loudest / 0.7413, unit)
    assert valid(ramp * 1e9, "a.u.")
    for sign in (-1, 1):
        spiked = ramp.copy()
        spiked[7] = sign * 0.98e4 * 0.7413
        assert valid(spiked, "uV")
        spiked[7] = sign * 1.02e4 * 0.7413
        assert not valid(spiked, "uV")


def test_the_scale_of_arbitrary_units_means_nothing() -> None:
    cut = window("fmri", n_samples=100, sfreq=0.5)
    found = []
    for unit, factor in (("a.u.", 1.0), ("a.u.", 10.0), ("percent", 1.0)):
        scaled = replace(cut, x_TC=cut.x_TC * np.float32(factor), recording=replace(cut.recording, unit=unit))
        found.append(collate([[scaled]]).signals["fmri"].x_BCT)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    assert 0.8 < float(found[0].std()) < 1.2
    np.testing.assert_array_equal(found[2][0].numpy(), cut.x_TC.T)


def test_a_batch_says_how_much_of_it_is_not_padding() -> None:
    batch = collate([[window(n_samples=20, n_channels=3)], [window(n_samples=10, n_channels=4)]])
    assert batch.real_share == {"eeg": (20 * 3 + 10 * 4) / (2 * 20 * 4)}
    assert pickle.loads(pickle.dumps(batch)).real_share == batch.real_share


def test_where_most_values_are_alike_the_deviation_is_the_standard_deviation_of_a_channel() -> None:
    x_CT = torch.zeros(3, 100)
    x_CT[0, :10], x_CT[1, :20] = 1.0, -3.0
    every = np.ones(3, dtype=bool), np.ones(100, dtype=bool)
    deviation, furthest = deviations(x_CT, *every)
    assert (deviation, furthest) == (pytest.approx(3 * 0.4), 3.0)
    assert deviations(x_CT, np.array([True, False, True]), every[1]) == (pytest.approx(0.3), 1.0)
    assert deviations(x_CT, *every[:1], np.arange(100) >= 20) == (0.0, 0.0)


@pytest.mark.parametrize(("valid", "step"), [(256, 1), (257, 2), (512, 2), (513, 3)])
def test_the_robust_deviation_is_of_256_valid_samples_at_most_and_the_distance_of_all(valid: int, step: int) -> None:
    draw = np.random.default_rng(valid)
    x_CT = draw.normal(size=(5, 700)).astype(np.float32) * np.array([1, 2, 3, 4, 90], np.float32)[:, None]
    valid_T = np.zeros(700, dtype=bool)
    valid_T[draw.permutation(700)[:valid]] = True
    x_CT[:, ~valid_T] = 0.0
    x_CT[1, np.flatnonzero(valid_T)[-1]] = -70.0
    good_C = np.array([True, True, True, True, False])
    some = x_CT[:4, valid_T][:, ::step]
    # torch's median is the lower of two in the middle.
    middle = np.sort(some, axis=1)[:, (some.shape[1] - 1) // 2]
    spread = np.sort(np.abs(some - middle[:, None]), axis=1)[:, (some.shape[1] - 1) // 2]
    deviation, furthest = deviations(torch.from_numpy(x_CT), good_C, valid_T)
    assert deviation == pytest.approx(1.4826 * np.sort(spread)[1], rel=1e-6)
    assert furthest == pytest.approx(np.abs(x_CT[:4] - middle[:, None]).max(), rel=1e-6)


def test_nothing_good_or_valid_deviates_by_nothing() -> None:
    x_CT, good_C, valid_T = torch.ones(2, 9), np.ones(2, dtype=bool), np.ones(9, dtype=bool)
    x_CT[0, ::2] = -1.0
    assert deviations(x_CT, good_C, valid_T) != (0.0, 0.0)
    assert deviations(x_CT, ~good_C, valid_T) == deviations(x_CT, good_C, ~valid_T) == (0.0, 0.0)
    assert deviations(x_CT, np.array([False, True]), valid_T) == (0.0, 0.0), "the good one is flat"


def test_valid_times_are_the_spans_seen_from_the_window() -> None:
    whole = window(n_samples=50)
    for spans, expected in (
        ([], range(20)),
        ([0, 50], range(20)),
        ([0, 10], []),
        ([0, 11], [0]),
        ([5, 12, 29, 40], [0, 1, 19]),
    ):
        cut = Window(whole.x_TC[10:30], replace(whole.recording, valid_spans=spans), 10)
        assert np.flatnonzero(valid_times(cut)).tolist() == list(expected), spans


def test_rows_are_taken_and_joined_with_all_of_their_tensors() -> None:
    signal = collate([[window(seed=i, subject=f"s{i}")] for i in range(4)], keys=[5, 6, 7, 8]).signals["eeg"]
    for rows in (torch.tensor([2, 0]), slice(1, 3), [3]):
        some = rows_of(signal, rows)
        for f in fields(signal):
            assert torch.equal(getattr(some, f.name), getattr(signal, f.name)[rows]), f.name
    again = as_one([rows_of(signal, slice(0, 1)), rows_of(signal, slice(1, 4))])
    assert all(torch.equal(getattr(again, f.name), getattr(signal, f.name)) for f in fields(signal))
    other = as_one([signal, signal], key_B=torch.arange(8))
    assert other.key_B.tolist() == list(range(8)) and other.sample_B.tolist() == [0, 1, 2, 3] * 2


def test_a_row_is_valid_where_it_has_a_channel_and_a_time() -> None:
    signal = collate([[window()]] * 4).signals["eeg"]
    channels, times = signal.channel_valid_BC.clone(), signal.time_valid_BT.clone()
    channels[1], times[2], channels[3], times[3] = False, False, False, False
    channels[0, 1:], times[0, :-1] = False, False
    assert signal.replace(channel_valid_BC=channels, time_valid_BT=times).row_valid_B.tolist() == [True] + [False] * 3


def test_without_keys_they_are_zero_and_left_out_windows_are_counted_by_site_in_order() -> None:
    flat = [window(site=site, bad=(0, 1, 2)) for site in ("z", "b", "b")]
    batch = collate([[cut] for cut in (*flat, window(site="a"))])
    assert list(batch.left_out.items()) == [("b", 2), ("z", 1)] and len(batch) == 4
    assert batch.signals["eeg"].key_B.tolist() == [0] * 4 and batch.unreadable == () and batch.read_seconds == {}


def test_in_a_worker_windows_are_in_shared_memory_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = collate([[window()], [window(n_samples=9, seed=1)]]).signals["eeg"].x_BCT
    assert not plain.is_shared()
    monkeypatch.setattr(batches, "get_worker_info", lambda: "a worker")
    shared = collate([[window()], [window(n_samples=9, seed=1)]]).signals["eeg"].x_BCT
    assert shared.is_shared() and torch.equal(shared, plain) and shared.is_contiguous()
    assert shared.untyped_storage().nbytes() == 4 * 2 * 3 * 20
