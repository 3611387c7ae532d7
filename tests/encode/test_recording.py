"""What is asked of a clean recording before it is encoded."""

import numpy as np
import pytest

from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.encode.recording import as_recording, require_positions


def clean(**changes: object) -> CleanRecording:
    """Six channels, of which one is bad and one has no position."""
    positions_C3, good_C = np.ones((6, 3)), np.ones(6, dtype=bool)
    positions_C3[5], good_C[0] = np.nan, False
    values = {"x_TC": np.zeros((400, 6), np.float32), "valid_spans": [0, 400], **changes}
    return CleanRecording(
        sfreq=200.0, unit="uV", channels=list("abcdef"), positions_C3=positions_C3, channel_good_C=good_C, **values
    )  # type: ignore[arg-type]


def test_as_many_good_channels_with_a_position_as_are_asked_for_are_enough() -> None:
    require_positions(clean(), "x.edf", 4, "places")
    with pytest.raises(
        ValueError, match=r"x.edf: 4 of 6 channels are good and have a position \(b, c, d, e\), expected"
    ):
        require_positions(clean(), "x.edf", 5, "places")


def test_a_recording_without_a_valid_span_is_not_valid_throughout() -> None:
    """In a corpus an empty list says that all is valid."""
    assert as_recording(clean(valid_spans=[]), "eeg").valid_spans == [0, 0]
    row = as_recording(clean(), "eeg")
    assert (
        row.valid_spans == [0, 400] and row.channel_good == [False, *[True] * 5] and row.positions_mm[:3] == [1, 1, 1]
    )
