"""Membership attack: do features show who was in the pretraining data?

The contrast pulls the windows of a training person together. If it does so for them alone, a person's own similarity
says whether the person was among them. What tells the two groups apart anyway (other sites, say) shows in the untrained
encoder, which has seen nobody.

Shape letters: N units, K projection width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mcsp.config import LabelledConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.windows import encode_windows, split_parts
from mcsp.evaluate import scores
from mcsp.evaluate.features import read_windows
from mcsp.evaluate.units import Labelled
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality

FEWEST_SUBJECTS = 5  # of those seen and of those not seen


def membership(
    models: Mapping[str, MCSP], corpus: Corpus, labelled: Labelled, seen: frozenset[str] | None, config: LabelledConfig
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
    for name, model in models.items():
        for modality in model.config.modalities:
            own_N = own_similarity(model, corpus, labelled, modality, config)
            known = np.isfinite(own_N)
            if len(set(member_N[known])) == 2:
                auroc_R = scores.auroc(own_N, member_N.astype(int), weight_RN)
                row = {"model": name, "modality": modality, "seen": int((member_N & known).sum())}
                out.append({**row, "unseen": int((~member_N & known).sum()), "auroc": scores.estimate(auroc_R)})
    return out


def own_similarity(
    model: MCSP, corpus: Corpus, labelled: Labelled, modality: Modality, config: LabelledConfig
) -> np.ndarray:
    """Mean cosine of z between the windows of each unit ``(N,)``; NaN where a unit has fewer than two."""
    z: dict[int, list[np.ndarray]] = {}
    windows = read_windows(corpus, labelled.units, modality, config, "membership")
    name_of = [unit.key for unit in labelled.units].__getitem__
    widths = model.learned_widths(modality)
    for i, vector_F in encode_windows(model, modality, windows, config.batch_size, name_of, "learned"):
        parts = split_parts(vector_F[None], widths)
        z.setdefault(i, []).append(np.hstack([parts[f"{domain}_z"][0] for domain in model.config.domains]))
    own_N = np.full(len(labelled.units), np.nan)
    for i, rows in z.items():
        if len(rows) > 1:
            cosine = np.stack(rows) @ np.stack(rows).T / len(model.config.domains)
            own_N[i] = cosine[np.triu_indices(len(rows), 1)].mean()
    return own_N
