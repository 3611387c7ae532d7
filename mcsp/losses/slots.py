"""Order of the stacked embeddings: one per modality, domain and view."""

from collections.abc import Sequence
from dataclasses import dataclass

from mcsp.schema import DOMAINS, MODALITIES, VIEWS, Domain, Modality


@dataclass(frozen=True)
class Slot:
    """One embedding of a sample; its place in the list is its index in a stack ``z_MnK``."""

    modality: Modality
    domain: Domain
    view: int


def slots(modalities: Sequence[Modality], domains: Sequence[Domain]) -> list[Slot]:
    """One slot per modality, domain and view, in the order of the schema, whatever the order of the arguments."""
    return [
        Slot(modality, domain, view)
        for modality in MODALITIES
        if modality in modalities
        for domain in DOMAINS
        if domain in domains
        for view in VIEWS
    ]
