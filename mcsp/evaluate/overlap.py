"""Were the subjects of an evaluation in the pretraining data? Keyed hashes are compared, or a warning is shown.

A subject's hash depends on the key, the site's name and the label. Under another key every hash differs, and an empty
intersection means nothing; so corpora and exports hold a fingerprint of the key, and only equal ones are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcsp.data_sharding.store.reader import Corpus
from mcsp.model.weights import SUBJECTS_FILE
from mcsp.outside import read_bounded
from mcsp.schema import KEY_FINGERPRINT


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
                "MCSP_SUBJECT_KEY when the corpus is built, or by the holders of both keys, it can be checked"
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
