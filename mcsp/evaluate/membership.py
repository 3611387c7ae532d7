"""Can the weights tell who was in the pretraining data? How alike a person's windows are to the encoder, seen or not.

The contrast pulls the windows of a training person together. If it does so for them alone, a person's own similarity
says whether the person was among them. What tells the two groups apart anyway (other sites, say) shows in the untrained
encoder, which has seen nobody.

Shape letters: N units, K projection width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsp.evaluate import scores
from mcsp.evaluate.methods import Encoded
from mcsp.evaluate.units import Labelled

FEWEST_SUBJECTS = 5  # of those seen and of those not seen


def membership(
    encoders: Mapping[str, Encoded], labelled: Labelled, seen: frozenset[str] | None
) -> list[dict[str, Any]]:
    """AUROC of telling subjects seen in pretraining from others, per encoder and modality; 0.5 is no leak.

    By the cosine of z between a unit's windows, mean over domains and pairs. Empty where it is not known who was seen,
    or where either group is small.
    """
    member_N = np.array([subject in (seen or ()) for subject in labelled.subjects])
    subjects = np.asarray(labelled.subjects)
    if seen is None or min(len(set(subjects[member_N])), len(set(subjects[~member_N]))) < FEWEST_SUBJECTS:
        return []
    weight_RN = scores.subject_weights(labelled.group_index())
    out: list[dict[str, Any]] = []
    for name, encoded in encoders.items():
        for modality, blocks in encoded.learned.items():
            z_NK = [block.x_NF for part, block in blocks.items() if part.endswith("_z")]
            own_N = own_similarity(z_NK, encoded.windows[modality])
            known = np.isfinite(own_N)
            if len(set(member_N[known])) == 2:
                auroc_R = scores.auroc(own_N, member_N.astype(int), weight_RN)
                row = {"model": name, "modality": modality, "seen": int((member_N & known).sum())}
                out.append({**row, "unseen": int((~member_N & known).sum()), "auroc": scores.estimate(auroc_R)})
    return out


def own_similarity(mean_z: Sequence[np.ndarray], count_N: np.ndarray) -> np.ndarray:
    """Mean cosine between the windows of each unit ``(N,)``, mean over domains; NaN where a unit has fewer than two.

    Of n vectors of length 1 with the mean m, ``n^2 |m|^2`` is n plus twice the sum of the cosines of all pairs.

    Args:
        mean_z: of each domain, z averaged over the windows of each unit, ``(N, K)``.
        count_N: windows of each unit.
    """
    square_N = np.mean([(z_NK**2).sum(axis=1) for z_NK in mean_z], axis=0)
    return np.where(count_N > 1, (count_N * square_N - 1) / np.maximum(count_N - 1, 1), np.nan)
