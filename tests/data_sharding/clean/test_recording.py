"""The reasons, as the code and the documents know them; spans and amplitudes of what was read."""

import re
from pathlib import Path

import numpy as np

from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.data_sharding.clean.recording import robust_amplitude, spans_of, summarise

ROOT = Path(__file__).resolve().parents[3]


def test_the_document_lists_every_reason_in_the_same_words() -> None:
    text = (ROOT / "docs" / "corpus-format.md").read_text()
    table = re.search(r"\| reason \| meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    assert table is not None
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table[1].splitlines()]
    assert rows == list(REASONS.items())


def test_spans_are_the_stretches_that_are_true() -> None:
    assert spans_of(np.array([True, True, False, True])) == [0, 2, 3, 4]
    assert spans_of(np.zeros(3, dtype=bool)) == []


def test_amplitude_is_that_of_a_gaussian_and_ignores_spikes() -> None:
    x_CT = 7 * np.random.default_rng(0).standard_normal((2, 20_000))
    x_CT[1, ::50] = 1e6
    amplitude_C = robust_amplitude(x_CT)
    np.testing.assert_allclose(amplitude_C, 7, rtol=0.03)
    good_C = np.array([True, False])
    assert summarise(amplitude_C, good_C, 0.25) == {
        "bad_channels": 1.0,
        "amplitude": amplitude_C[0],
        "artefact_fraction": 0.25,
    }
