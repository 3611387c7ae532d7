"""The card of an export says how well an attack tells who was in the pretraining, where an evaluation measured it."""

from mcsp.export.card import membership_text

EEG = {"model": "pretrained", "modality": "eeg", "seen": 12, "unseen": 8}


def test_the_card_says_what_the_attack_on_membership_achieved() -> None:
    auroc = {"value": 0.6171, "ci_low": 0.5, "ci_high": 0.74}
    other = {**EEG, "model": "untrained", "auroc": {"value": 0.51, "ci_low": 0.4, "ci_high": 0.6}}
    said = membership_text({"membership": [{**EEG, "auroc": auroc}, other]})
    assert "pretrained, eeg 0.617 (0.500 to 0.740; 12 seen, 8 not); untrained, eeg 0.510 (0.400 to 0.600;" in said
    for without in (None, {}, {"membership": []}, {"membership": [{**EEG, "auroc": None}]}):
        assert membership_text(without).startswith("It was not examined")
