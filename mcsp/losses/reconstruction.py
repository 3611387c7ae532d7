"""Masked-patch reconstruction: from the tokens of a view of which some are hidden, what these were made from.

Of sample n the tokens H_n are hidden: patches of time, patches of frequencies, or anchors with all of their
connections. For a token p and its numbers e, with predictions x_npe (linear in the token that comes out of the
encoder), targets y_npe and their means over people m::

    e_n = 1 - corr over p in H_n and all e of (x_npe - m_x, y_npe - m_y)        L_q = mean_n e_n

corr and means are those of :mod:`mcsp.losses.prediction`, so that a token does not count as known because it is alike
in everybody; means belong to a token's place where places are the same in all windows (anchors, frequencies). Targets
are measured on the view itself and have no gradient. corr standardises them within a sample, so that neither amplitude
nor unit plays a part. A sample in which nothing can be hidden counts as 1.

Hiding patches and predicting what they were made from is masked autoencoding (He et al., arXiv 2111.06377); for EEG
LaBraM (arXiv 2405.18765) and CBraMod (arXiv 2412.07236), for BOLD BrainLM (Caro et al., ICLR 2024). This loss is ours.

Shape letters: B rows of a modality, P tokens, E numbers of a token.
"""

from collections.abc import Sequence

from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.losses.prediction import PredictionTerm, prediction_error
from mcsp.losses.slots import Slot


def reconstruction_terms(stack: Sequence[Slot], config: ObjectiveConfig) -> list[PredictionTerm]:
    """One for each modality and domain, called ``reconstruction/fmri/spatial``; none where their weight is 0."""
    return [
        PredictionTerm(
            f"reconstruction/{s.modality}/{s.domain}", s.modality, s.domain, "hidden", i, config.reconstruction
        )
        for i, s in enumerate(stack)
        if config.reconstruction > 0 and s.view == 0
    ]


def reconstruction_error(
    predicted_BPE: Tensor, target_BPE: Tensor, mean_predicted_PE: Tensor, mean_target_PE: Tensor, hidden_BP: Tensor
) -> Tensor:
    """``e`` of the module's docstring for each row, (B,); the means are (P, E), or (1, E) where places do not count."""
    numbers = predicted_BPE.shape[1:]
    return prediction_error(
        predicted_BPE.flatten(1),
        target_BPE.to(predicted_BPE.dtype).flatten(1),
        mean_predicted_PE.expand(numbers).flatten(),
        mean_target_PE.expand(numbers).flatten(),
        hidden_BP[..., None].expand(-1, *numbers).flatten(1),
    )
