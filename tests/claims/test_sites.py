"""A site signature stronger than the label does not win where negatives are of the same site.

Shape letters: N subjects, P parcels, T volumes.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.ablation.scores import site_decoding
from mcsp.batch import Batch, Signal
from mcsp.config import ModelConfig, ObjectiveConfig
from mcsp.data_sharding.demo.simulate import parcel_lattice
from mcsp.data_sharding.demo.simulate_consortium import N_PARCELS, consortium, simulate_consortium_subject
from mcsp.model.mcsp import MCSP
from tests.claims.planted import auroc, encoded, rows_of, signal_of, train

SITES, EACH, BATCH, STEPS = 4, 40, 40, 50
CONFIG = ModelConfig(modalities=("fmri",), domains=("spatial",))


def recordings() -> tuple[Signal, np.ndarray, np.ndarray]:
    """BOLD of every second parcel, with label and site."""
    _, position_P3 = parcel_lattice(N_PARCELS)
    x_NPT, case_N, site_N = [], [], []
    for site in consortium(SITES, SITES * EACH):
        same = replace(site, n_subjects=EACH, t_r=2.0, n_volumes=160, noise=1.0)
        for index in range(EACH):
            one = simulate_consortium_subject(same, index)
            percent_PT = 100 * (one.bold_PT / one.bold_PT.mean(1, keepdims=True) - 1)
            x_NPT.append(percent_PT[::2])
            case_N.append(one.label == "case")
            site_N.append(site.number)
    return signal_of(np.array(x_NPT), 0.5, position_P3[::2]), np.array(case_N), np.array(site_N)


@pytest.mark.slow
def test_within_site_negatives_leave_less_of_the_site_and_no_less_of_the_label() -> None:
    signal, case_N, site_N = recordings()

    def batch_of(step: int) -> Batch:
        rows = np.random.default_rng(step).choice(len(signal), BATCH, replace=False)
        return Batch(
            {"fmri": rows_of(signal, rows, step)}, torch.from_numpy(rows), torch.from_numpy(site_N[rows]), ("",) * BATCH
        )

    def of_site(x_NF: np.ndarray) -> dict[str, float]:
        return site_decoding(x_NF, [str(s) for s in site_N])

    h_of, z_of = {}, {}
    for negatives in ("all", "within_site"):
        # The contrast alone: prediction asks for the whole pattern, and the site is part of it.
        model = train(CONFIG, batch_of, STEPS, objective_config=ObjectiveConfig(negatives=negatives, prediction=0))
        h_of[negatives] = encoded(model, "fmri", "spatial", signal)
        with torch.inference_mode():
            z_of[negatives] = model.project("fmri", "spatial", torch.from_numpy(h_of[negatives]).float()).numpy()
    torch.manual_seed(0)
    untrained_NF = encoded(MCSP(CONFIG), "fmri", "spatial", signal)
    site_of_h, site_of_z = ({k: of_site(x_NF) for k, x_NF in found.items()} for found in (h_of, z_of))

    # The trap is there: the site explains several times what the label does, before training and with all negatives.
    label_share = site_decoding(untrained_NF, [str(c) for c in case_N])["site_variance"]
    assert of_site(untrained_NF)["site_variance"] > 5 * label_share
    assert site_of_z["all"]["site"] > 0.7 and site_of_z["all"]["site_variance"] > 0.2
    # What the contrast compares loses the site, and so does what is kept.
    assert site_of_z["within_site"]["site_variance"] < 0.6 * site_of_z["all"]["site_variance"]
    assert site_of_z["within_site"]["site"] < site_of_z["all"]["site"] - 0.05
    assert site_of_h["within_site"]["site_variance"] < site_of_h["all"]["site_variance"]
    label = {k: auroc(x_NF, case_N) for k, x_NF in h_of.items()}
    assert label["within_site"] > label["all"] - 0.05
