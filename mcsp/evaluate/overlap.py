"""Were the subjects of an evaluation in the pretraining data? Keyed hashes are compared, or a warning is shown.

A subject's hash depends on the key, the site's name and the label. Under another key every hash differs, and an empty
intersection means nothing; so corpora and exports hold a fingerprint of the key, and only equal ones are compared.

The membership attack asks whether features show who was in the pretraining data: the contrast pulls the windows of a
training person together, and if it does so for them alone, a person's own similarity says whether the person was among
them. What tells the two groups apart anyway (other sites, say) shows in the untrained encoder, which has seen nobody.

Shape letters: N units, K projection width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate import scores
from mcsp.evaluate.methods import Encoded
from mcsp.evaluate.units import Labelled
from mcsp.model.weights import SUBJECTS_FILE
from mcsp.outside import read_bounded
from mcsp.schema import KEY_FINGERPRINT, KEY_VARIABLE


@dataclass(frozen=True)
class Overlap:
    """What is known of the subjects that both have.

    Attributes:
        seen: "site/subject" of those of the evaluation; None where it could not be found out.
        text: a sentence or two for people; in capitals where it could not.
    """

    seen: frozenset[str] | None
    text: str

    @property
    def count(self) -> int | None:
        """Number of subjects that pretraining has seen; None where unknown."""
        return None if self.seen is None else len(self.seen)


def find_overlap(preprocessing: Mapping[str, Any], model_dir: Path, corpus: Corpus, subjects: Sequence[str]) -> Overlap:
    """Compare the subjects of an evaluation with those of the pretraining.

    Args:
        preprocessing: of the export.
        model_dir: its folder.
        corpus: of the evaluation.
        subjects: "site/subject" of every unit.
    """
    path = model_dir / SUBJECTS_FILE
    if not path.is_file():
        return _unknown(f"the export does not list its pretraining subjects ({SUBJECTS_FILE} is missing)")
    listed, own = frozenset(read_bounded(path).decode().split()), frozenset(subjects)
    seen = listed & own
    if not seen and corpus.index_hash != preprocessing.get("corpus_index_hash"):
        # Equal hashes under different keys do not happen; unequal ones say nothing.
        here, there = corpus.index.get(KEY_FINGERPRINT), preprocessing.get(KEY_FINGERPRINT)
        if not here or not there:
            older = "the corpus" if not here else "the export"
            return _unknown(f"{older} holds no fingerprint of the key that its subjects were hashed under")
        if here != there:
            return _unknown(
                f"its subjects were hashed under another key (fingerprint {here[:8]}) than those of pretraining "
                f"({there[:8]}), so that the same person has two hashes; with the pretraining's key in "
                f"{KEY_VARIABLE} when the corpus is built, or by the holders of both keys, it can be checked"
            )
    text = f"{len(seen) or 'None'} of the {len(own)} subjects {'was' if len(seen) == 1 else 'were'} in the pretraining "
    text += "data."
    new_sites = sorted({s.partition("/")[0] for s in own} - {s.partition("/")[0] for s in listed})
    if new_sites:
        text += (
            f" Hashes depend on the site's name, and pretraining had no site called {', '.join(new_sites)}: its people "
            "are not recognised where they were also recorded at another site."
        )
    return Overlap(seen, text)


def _unknown(why: str) -> Overlap:
    return Overlap(None, f"OVERLAP NOT CHECKED: whether these subjects were in the pretraining data is unknown: {why}.")


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
