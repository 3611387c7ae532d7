"""MCSP: multi-modal cross-domain self-supervised pretraining for fMRI and EEG."""

from typing import TYPE_CHECKING

from mcsp.version import __version__ as __version__

if TYPE_CHECKING:  # what type checkers of other projects see of the names below
    from mcsp.encode.deployed import LoadedClassifier
    from mcsp.encode.pretrained import from_pretrained as from_pretrained

    load_classifier = LoadedClassifier


def __getattr__(name: str) -> object:
    if name == "from_pretrained":  # torch is imported only when a model is wanted
        from mcsp.encode.pretrained import from_pretrained

        return from_pretrained
    if name == "load_classifier":
        from mcsp.encode.deployed import LoadedClassifier

        return LoadedClassifier
    raise AttributeError(f"module 'mcsp' has no attribute {name!r}")
