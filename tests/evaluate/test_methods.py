"""What feature sets are made of: how blocks are weighed, and where the root goes through the denoiser."""

import numpy as np
import pytest

from mcsp.evaluate.measured import Measured
from mcsp.evaluate.methods import (
    DENOISED,
    LEARNED_SHARE,
    PRETRAINED,
    PRETRAINED_LEARNED,
    SHUFFLED,
    Block,
    Described,
    Encoded,
    Halves,
    learned_blocks,
    methods,
)
from mcsp.evaluate.readout import grams
from mcsp.evaluate.readout.classifiers import SVM, on_grams

N, SITES = 24, ["a"] * 12 + ["b"] * 12
TRAIN, TEST = np.arange(18), np.arange(18, N)


def table(seed: int, columns: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, columns))


def described(own: bool) -> Described:
    """One encoder, and the root of BOLD with its halves."""
    root_NF, halves = table(0), (table(1), table(2))
    covariance_NCC = np.repeat(np.eye(3)[None], N, axis=0) * np.linspace(1, 2, N)[:, None, None]
    rulers = {"fmri": Measured(own, {"connectivity": table(3), "root": root_NF}, halves, covariance_NCC)}
    encoded = Encoded(
        {"fmri": {"spatial": Block(table(4)), "spatial_z": Block(table(6))}}, {"fmri": {"root": Block(root_NF)}}
    )
    return Described({PRETRAINED: encoded}, rulers, np.zeros((N, 0)), SITES)


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("own", [True, False])
def test_the_root_goes_through_the_denoiser_where_all_have_the_same_parcels(
    own: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEARNED_SHARE, "fmri", share)
    of = described(own)
    method = methods(of, "fmri")[0]
    assert (method.features, method.classifier) == (PRETRAINED, "linear SVM")
    y_N = np.random.default_rng(5).integers(0, 2, N)
    root = grams.fixed([grams.gram(table(0))])
    if own:
        root = grams.denoised(grams.gram(np.concatenate([table(0), table(1), table(2)])), SITES)
    expected = on_grams(SVM, grams.weighed([(root, 1 - share), (grams.fixed([grams.gram(table(4))]), share)]))
    found, wanted = (readout(TRAIN)(TEST, TRAIN, y_N) for readout in (method.readout(np.arange(N)), expected))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_learned_part_is_what_the_spatial_domain_keeps() -> None:
    learned = next(m for m in methods(described(True), "fmri") if m.features == PRETRAINED_LEARNED)
    assert learned.n_features == 40
    encoded = Encoded({"fmri": {"temporal": Block(table(4)), "temporal_z": Block(table(6))}}, {})
    assert len(learned_blocks(encoded, "fmri")) == 2  # a model without that domain


def test_the_denoiser_and_its_control_are_rulers_of_their_own() -> None:
    rows = {m.features: m for m in methods(described(True), "fmri") if m.classifier == "linear SVM"}
    y_N = np.random.default_rng(5).integers(0, 2, N)
    stacked = grams.gram(np.concatenate([table(0), table(1), table(2)]))
    for name, shuffled in ((DENOISED, False), (SHUFFLED, True)):
        wanted = on_grams(SVM, grams.denoised(stacked, SITES, shuffled))(TRAIN)(TEST, TRAIN, y_N)
        np.testing.assert_allclose(rows[name].readout(np.arange(N))(TRAIN)(TEST, TRAIN, y_N), wanted, atol=1e-9)


def test_a_person_without_halves_has_no_row_and_a_fold_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = table(1)
    first[3] = np.nan
    halves = Halves(table(0), (first, table(2)), SITES)
    assert np.flatnonzero(~halves.finite_N).tolist() == [3]
    asked: list[int] = []
    true = grams.denoised

    def counted(*arguments):
        of = true(*arguments)
        return lambda train: asked.append(len(train)) or of(train)

    monkeypatch.setattr(grams, "denoised", counted)
    rows = np.flatnonzero(halves.finite_N)
    for train in (TRAIN, TRAIN, TRAIN[:10]):
        halves.gram_of(rows)(train)
    assert asked == [18, 10]
