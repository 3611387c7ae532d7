"""MCSP: multi-modal cross-domain self-supervised pretraining for fMRI and EEG."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "from_pretrained":  # torch is imported only when a model is wanted
        from mcsp.model.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'mcsp' has no attribute {name!r}")
