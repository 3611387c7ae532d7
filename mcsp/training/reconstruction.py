"""Linear heads that say what hidden tokens were made from; pretraining needs them, an export does not hold them.

Shape letters: B rows, P tokens, D width, E numbers of a token.
"""

import torch
from torch import Tensor, nn

from mcsp.model.mcsp import Encoder
from mcsp.training.prediction import MEAN_SCALE, Prediction


class ReconstructionHead(nn.Module):
    """``tokens -> Prediction`` of the numbers that each token was made from.

    Means over people are kept per place, where an encoder's places are the same in all windows.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.source_shape = encoder.source_shape
        places, count = self.source_shape
        self.read = nn.Linear(encoder.embed.out_features, count, bias=False)
        # Flat, as weight decay is for matrices.
        self.mean_predicted_E = nn.Parameter(torch.zeros(places * count))
        self.mean_target_E = nn.Parameter(torch.zeros(places * count))

    def forward(self, attended_BPD: Tensor) -> Prediction:
        """Predict ``(B, P, E)``, with means ``(P, E)`` or ``(1, E)``, in float32 at least."""
        wide = torch.float64 if self.mean_target_E.dtype == torch.float64 else torch.float32
        means = (MEAN_SCALE * m.to(wide).view(self.source_shape) for m in (self.mean_predicted_E, self.mean_target_E))
        return Prediction(self.read(attended_BPD).to(wide), *means)
