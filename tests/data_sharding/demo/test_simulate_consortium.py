"""The simulated consortium: what is planted is there, and the label is as faint as real ones are.

Shape letters: N subjects, P parcels, F pairs of parcels.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from mcsp.data_sharding.demo.simulate_consortium import N_PARCELS, consortium, population, simulate_consortium_subject


def fisher_z(x_PT: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(np.corrcoef(x_PT)[np.triu_indices(len(x_PT), 1)], -0.999, 0.999))


@pytest.fixture(scope="module")
def people() -> dict[str, np.ndarray]:
    """Connectivity of 360 subjects at 9 sites: whole recordings and halves."""
    found: dict[str, list] = {"whole": [], "first": [], "second": [], "case": [], "site": [], "modes": []}
    for site in consortium(9, 360):
        for index in range(site.n_subjects):
            one = simulate_consortium_subject(site, index)
            half = one.bold_PT.shape[1] // 2
            found["whole"].append(fisher_z(one.bold_PT))
            found["first"].append(fisher_z(one.bold_PT[::4, :half]))
            found["second"].append(fisher_z(one.bold_PT[::4, half:]))
            found["case"].append(one.label == "case")
            found["site"].append(site.number)
            found["modes"].append(one.modes_K)
    return {name: np.array(values) for name, values in found.items()}


def left_out(x_NF: np.ndarray, case_N: np.ndarray, site_N: np.ndarray) -> float:
    """Mean over sites of the AUROC within a site that a linear SVM has not seen."""
    x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    values, vectors = np.linalg.eigh(x_NF @ x_NF.T / x_NF.shape[1])
    x_NN = vectors * np.sqrt(values.clip(0))  # the same inner products in fewer columns
    aurocs = []
    for site in np.unique(site_N):
        train = site_N != site
        score_N = LinearSVC(C=0.3, max_iter=5000).fit(x_NN[train], case_N[train]).decision_function(x_NN[~train])
        aurocs.append(roc_auc_score(case_N[~train], score_N))
    return float(np.mean(aurocs))


def test_connectivity_finds_the_label_at_unseen_sites_as_well_as_in_reality(people: dict[str, np.ndarray]) -> None:
    found = left_out(people["whole"], people["case"], people["site"])
    assert 0.66 < found < 0.84
    assert left_out(people["modes"], people["case"], people["site"]) > found  # what was planted says more


def test_people_keep_their_connectivity_and_their_state_changes_it(people: dict[str, np.ndarray]) -> None:
    first, second = (x - x.mean(0) for x in (people["first"], people["second"]))
    similar = np.corrcoef(first, second)[: len(first), len(first) :]
    hits = (similar.argmax(1) == np.arange(len(first))).mean()
    assert 10 / len(first) < hits < 0.9  # found far above chance, and not trivially
    site = consortium(2, 24)[0]
    assert len(set(simulate_consortium_subject(site, 0).state_T.tolist())) > 1


def test_the_site_shows_more_than_the_label(people: dict[str, np.ndarray]) -> None:
    def apart(groups_N: np.ndarray) -> float:
        means = [people["whole"][groups_N == g].mean(0) for g in np.unique(groups_N)]
        return float(np.var(means, axis=0).mean())

    assert apart(people["site"]) > 2 * apart(people["case"])


def test_sites_differ_and_add_up() -> None:
    sites = consortium(12, 600)
    assert sum(site.n_subjects for site in sites) == 600 and min(site.n_subjects for site in sites) >= 10
    assert len({(site.t_r, site.n_volumes, site.noise) for site in sites}) == 12
    assert all(150 <= site.n_volumes <= 300 for site in sites)
    one = simulate_consortium_subject(sites[3], 2)
    assert one.bold_PT.shape == (N_PARCELS, sites[3].n_volumes)
    again, other = simulate_consortium_subject(sites[3], 2), simulate_consortium_subject(sites[3], 3)
    np.testing.assert_array_equal(one.bold_PT, again.bold_PT)
    assert not np.array_equal(one.bold_PT, other.bold_PT)
    second = consortium(12, 600, seed=1)
    assert {site.name for site in second}.isdisjoint(site.name for site in sites)
    assert not np.array_equal(simulate_consortium_subject(second[3], 2).modes_K, one.modes_K)


def test_the_label_lies_in_the_strongest_modes_as_documented() -> None:
    everybody = population()
    norm_K = np.linalg.norm(everybody.modes_KSS, axis=(1, 2))
    assert (np.diff(norm_K) < 0).all()
    assert np.linalg.norm(everybody.label_K) == pytest.approx(1)
    assert (everybody.label_K[6:] == 0).all()


def test_the_launcher_writes_the_sites_as_derivatives(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mcsp", "demo-sites", tmp_path, "--kind", "fmri-consortium"]
    command += ["--sites", "2", "--subjects", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sites = consortium(2, 24)
    assert sorted(p.name for p in tmp_path.iterdir()) == [site.name for site in sites]
    root = tmp_path / sites[1].name
    with (root / "participants.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == sites[1].n_subjects
    expected = simulate_consortium_subject(sites[1], 3)
    assert rows[3]["diagnosis"] == expected.label
    path = next((root / rows[3]["participant_id"] / "func").glob("*_seg-Lattice200_stat-mean_timeseries.tsv"))
    np.testing.assert_allclose(np.loadtxt(path, skiprows=1).T, expected.bold_PT, atol=1e-3)
    assert json.loads(path.with_suffix(".json").read_text())["RepetitionTime"] == sites[1].t_r
    assert json.loads((root / "dataset_description.json").read_text())["Simulated"] is True
    refused = subprocess.run([*command[:-1], "20"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "found 20 subjects at 2" in refused.stderr
