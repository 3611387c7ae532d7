"""The control of shuffled pairs: nobody is paired with himself or with another site, and the encoder is the same."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from mcsp.batch import Batch, collate
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses.objective import pair_terms, slots
from mcsp.losses.shuffled import BLOCK, other_rows, place, places_Kn, subjects_of_blocks
from mcsp.schema import DOMAINS, MODALITIES
from mcsp.training.pretrainer import Pretrainer
from tests.model.test_encoders import make_signal
from tests.test_batch import window

HALVES = AugmentationConfig(opposite_halves=DOMAINS)


def people(**sites: tuple[int, tuple[str, ...]]) -> Batch:
    """So many people of each site with these modalities."""
    samples = [
        [window(m, 40, 4, f"s{i}", site, seed=i) for m in modalities]
        for site, (count, modalities) in sites.items()
        for i in range(count)
    ]
    return collate(samples)


def test_blocks_are_of_one_site_and_of_the_same_modalities() -> None:
    batch = people(a=(8, MODALITIES), b=(6, ("eeg",)), c=(5, ("fmri",)), d=(3, ("fmri",)), e=(1, ("fmri",)))
    found = places_Kn(batch)
    assert torch.equal(found[0], torch.arange(len(batch)))
    for row_n in found:
        assert torch.equal(row_n.sort().values, found[0])  # everybody stands in for somebody
        assert torch.equal(batch.site_N[row_n], batch.site_N)
    alone = batch.site_N == batch.site_N[-1]
    few = batch.site_N == batch.site_N[-2]
    for one, other in combinations(range(BLOCK), 2):
        assert (found[one] != found[other])[~(alone | few)].all()
    assert (found[1] != found[0])[few].all() and (found[:, alone] == found[0, alone]).all()
    block_n = subjects_of_blocks(batch)
    assert [int((block_n == key).sum()) for key in dict.fromkeys(block_n.tolist())] == [4, 4, 6, 5, 3, 1]
    assert torch.equal(block_n, block_n[found[3]])
    mixed = replace(batch, site_N=torch.zeros_like(batch.site_N))  # one site: the modalities alone tell blocks apart
    eeg = set(batch.signals["eeg"].sample_B.tolist())
    assert all((n in eeg) == (int(p) in eeg) for p_n in places_Kn(mixed) for n, p in enumerate(p_n))


def test_whatever_is_compared_takes_other_places() -> None:
    stack = slots(MODALITIES, DOMAINS)
    terms = pair_terms(stack, ObjectiveConfig())
    assert len(terms) == 15
    assert all(place(stack[term.a]) != place(stack[term.b]) for term in terms)


@pytest.fixture(scope="module")
def modules() -> tuple[Pretrainer, Pretrainer]:
    """The same weights, plain and with shuffled pairs."""
    plain, control = (
        Pretrainer(ModelConfig(modalities=("fmri",)), ObjectiveConfig(shuffled_pairs=shuffled), HALVES)
        for shuffled in (None, "within_site")
    )
    control.load_state_dict(plain.state_dict())
    return plain, control


def test_embeddings_are_those_of_others_and_so_is_what_they_predict(modules) -> None:
    plain, control = modules
    signal = make_signal("fmri", rows=9, channels=6)
    signal.channel_valid_BC[7] = False
    site_N = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    batch = Batch({"fmri": signal}, torch.arange(9), site_N, tuple("abcdefghi"))
    own, found, places = plain(batch), control(batch), places_Kn(batch)
    for slot, z_nK, own_nK in zip(plain.slots, found.z_MnK, own.z_MnK, strict=True):
        assert torch.equal(z_nK, own_nK[places[place(slot)]])
    assert found.valid_Mn.tolist() == [[True] * 4 + [False] * 4 + [True]] * len(plain.slots)  # a block counts whole
    changed = (found.error_Qn != own.error_Qn).all(0)
    assert changed.tolist() == [True] * 8 + [False]  # the last one is alone at its site


def test_predictions_of_people_with_the_same_recording_do_not_change(modules) -> None:
    signal = make_signal("fmri", rows=1, channels=6)
    same = {name: getattr(signal, name).repeat_interleave(4, 0) for name in ("x_BCT", "sfreq_B", "time_valid_BT")}
    same |= {n: getattr(signal, n).repeat_interleave(4, 0) for n in ("channel_valid_BC", "position_BC3")}
    four = signal.replace(
        **same, position_valid_BC=same["channel_valid_BC"], sample_B=torch.arange(4), key_B=torch.zeros(4).long()
    )
    batch = Batch({"fmri": four}, torch.arange(4), torch.zeros(4, dtype=torch.int64), tuple("abcd"))
    own, found = (module(batch) for module in modules)
    torch.testing.assert_close(found.error_Qn, own.error_Qn)
    assert other_rows(places_Kn(batch), four.sample_B).tolist() == [1, 2, 3, 0]
