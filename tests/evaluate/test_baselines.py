"""Tables of what is measured: own channels only where names agree, covariates, halves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate.measured import (
    SCALP_REGIONS_MM,
    Points,
    brain_lattice_mm,
    covariate_table,
    measure,
    root_connectivity,
    same_channels,
    series,
)
from mcsp.evaluate.units import Labelled, Unit
from tests.evaluate.test_features import recording, units_of


def test_own_channels_only_where_names_agree(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    units = units_of(corpus)
    of_a = [u for u in units if u.recordings[0].site == "simulated-a"]
    assert same_channels(of_a, "fmri") and not same_channels(units, "fmri")
    first = of_a[0].of("fmri")[0]
    own = measure(corpus, of_a[:2])
    assert own["fmri"].own and own["fmri"].covariance_NCC.shape == (2, first.n_channels, first.n_channels)
    pairs = first.n_channels * (first.n_channels - 1) // 2
    assert {name: x.shape for name, x in own["fmri"].features.items()} == {
        name: (2, pairs) for name in ("connectivity", "root")
    }
    across = measure(corpus, [units[0], units[-1]])
    assert not across["fmri"].own and not across["eeg"].own
    assert across["fmri"].covariance_NCC.shape == (2, len(brain_lattice_mm()), len(brain_lattice_mm()))
    assert across["eeg"].covariance_NCC.shape == (2, len(SCALP_REGIONS_MM), len(SCALP_REGIONS_MM))
    for of in across.values():
        x_NCC = of.covariance_NCC
        np.testing.assert_allclose(x_NCC, x_NCC.swapaxes(1, 2))
        assert (np.linalg.eigvalsh(x_NCC) > 0).all()


def test_halves_are_those_in_time_and_a_unit_is_the_mean_of_its_recordings(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    first = units_of(corpus)[0].of("fmri")[0]
    x_TC = series(corpus.read_window(first, 0, first.n_samples), Points(None), True)
    assert x_TC is not None
    found = measure(corpus, [Unit("a", (first,)), Unit("b", (first, replace(first, run="2")))])["fmri"]
    assert found.halves is not None
    for half_NF, part_TC in zip(found.halves, np.array_split(x_TC[: len(x_TC) // 2 * 2], 2), strict=True):
        np.testing.assert_allclose(half_NF[0], root_connectivity(part_TC), atol=0.02)
        np.testing.assert_allclose(half_NF[1], half_NF[0], atol=1e-12)


def labelled(units: list[Unit], sites: list[str]) -> Labelled:
    return Labelled(units, np.arange(len(units)) % 2, ["a", "b"], [u.key for u in units], sites, {})


def test_covariates_come_from_participants_and_from_the_quality_of_recordings(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    people = [{"age": 31, "sex": "F"}, {"age": 44.5, "sex": "M"}, {"sex": "F"}]
    units = [
        Unit(str(i), (recording(participant=json.dumps(person), quality=json.dumps({"mean_fd_mm": 0.1 * i})),))
        for i, person in enumerate(people)
    ]
    of = labelled(units, ["s"] * 3)
    table = covariate_table(corpus, of, ["age", "sex", "mean_fd_mm"], "diagnosis")
    expected = np.array([[31, 0, 0], [44.5, 1, 0.1], [37.75, 0, 0.2]])  # the mean where an age is missing
    np.testing.assert_allclose(table, expected)
    np.testing.assert_allclose(covariate_table(corpus, of, None, "diagnosis"), expected)
    np.testing.assert_allclose(covariate_table(corpus, of, None, "sex"), expected[:, [0, 2]])
    np.testing.assert_allclose(covariate_table(corpus, of, ["age", "sex"], "age"), expected[:, [1]])  # no leak
    assert covariate_table(corpus, of, [], "diagnosis").shape == (3, 0)
    of_two = labelled(units, ["s", "t", "t"])
    np.testing.assert_allclose(
        covariate_table(corpus, of_two, ["age"], "x"), np.c_[[1, 0, 0], [0, 1, 1], expected[:, 0]]
    )
    mixed = [Unit(str(i), (recording(participant=json.dumps({"age": a})),)) for i, a in enumerate([31, "old", "?"])]
    with pytest.raises(ValueError, match="'age': expected numbers or two values"):  # 31, 1 and 0 are no ages
        covariate_table(corpus, labelled(mixed, ["s"] * 3), ["age"], "diagnosis")
    with pytest.raises(ValueError, match="'height': expected numbers or two values, found nothing"):
        covariate_table(corpus, of, ["height"], "diagnosis")
