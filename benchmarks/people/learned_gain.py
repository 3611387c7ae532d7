"""Whether anything that is learned without labels adds to the denoised root of connectivity: BOLD, sites left out.

python benchmarks/people/learned_gain.py --corpus DIR --label COLUMN [--exports NAME=DIR ...] [--out FILE]

The denoiser (mcsp/evaluate/readout/grams.py) is a linear layer with a closed form. Here it is one of few numbers, the
start of a network that is trained on with the objective's own terms, prediction of the other half within sites and
contrast within sites, or that is trained from random weights; each fitted on the training people of a fold, or on
everybody, and on pairs shuffled within sites. Then the spatial h of exports, alone and beside the denoiser. Last, how
well a denoiser of few numbers tells the people it was fitted on from others of the same sites.

Features of recordings and halves are taken in the span of the training halves, where all that training can change lies.

Shape letters: N units, M training units, P dimensions of the span, R numbers of a layer.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import Bold, arguments_of, write
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from mcsp.config import EvaluateConfig
from mcsp.encode.pretrained import from_pretrained
from mcsp.evaluate.evaluate import untrained_like, with_windows
from mcsp.evaluate.features import learned_parts
from mcsp.evaluate.readout.classifiers import SVM, on_grams
from mcsp.evaluate.readout.grams import (
    DENOISER_PENALTY,
    GramOf,
    combined,
    fixed,
    gram,
    others_of_site,
    weighed,
    within_sites,
    without_means,
)

RANKS, TRAINED_RANK, SEEDS, STEPS = (16, 64, 256), 64, (0, 1), 200
PEOPLE_A_STEP, SITES_A_STEP = 64, 4
SHARES = (0.05, 0.1, 0.25)


class Span:
    """Halves of training people and what each predicts ``(2 M, P)``; all recordings and halves ``(3 N, P)``."""

    def __init__(
        self, gram_3N3N: np.ndarray, site_N: np.ndarray, train: np.ndarray, shuffled: bool, to_whole: bool = False
    ) -> None:
        """Of one space; predicted is the other half, or the whole recording, without its site's mean."""
        own_AA, every_A = within_sites(gram_3N3N, site_N, train, shuffled and not to_whole)
        value_P, vector_AP = np.linalg.eigh(own_AA)
        kept = value_P > 1e-8 * value_P[-1]
        self.value_P, vector_AP = value_P[kept], vector_AP[:, kept]
        self.halves_AP = vector_AP * np.sqrt(self.value_P)
        self.all_3NP = every_A @ (vector_AP / np.sqrt(self.value_P))
        self.whole_NP = self.all_3NP[: len(site_N)]
        self.site_M = np.unique(site_N[train], return_inverse=True)[1]
        self.target_AP = np.roll(self.halves_AP, len(train), axis=0)
        if to_whole:
            whose = others_of_site(train, site_N) if shuffled else train
            self.target_AP = np.tile(without_means(self.whole_NP[whose], site_N[train]), (2, 1))

    def denoiser(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The ridge of ``rank`` numbers: ``(P, R)`` to them, ``(R, P)`` to the target; reduced-rank regression."""
        penalty = DENOISER_PENALTY * self.value_P.sum() / len(self.target_AP)
        ridge_PP = (self.halves_AP.T @ self.target_AP) / (self.value_P + penalty)[:, None]
        right_RP = np.linalg.svd(self.halves_AP @ ridge_PP, full_matrices=False)[2][:rank]
        return ridge_PP @ right_RP.T, right_RP


class Layer(nn.Module):
    """A linear layer that starts at a denoiser, or of its scale at random, with an MLP beside it that starts at 0."""

    def __init__(self, span: Span, draw: torch.Generator, at_denoiser: bool, mlp: bool) -> None:
        super().__init__()
        found, self.with_mlp = [torch.tensor(x, dtype=torch.float32) for x in span.denoiser(TRAINED_RANK)], mlp
        # Of unit size, because Adam moves a number by the learning rate.
        found = [x / x.square().mean().sqrt() for x in found]
        if not at_denoiser:
            found = [torch.randn(x.shape, generator=draw) for x in found]
        self.encode_PR, self.decode_RP = (nn.Parameter(x) for x in found)
        self.spread = float((torch.tensor(span.halves_AP, dtype=torch.float32) @ self.encode_PR.detach()).std())
        wide = 4 * TRAINED_RANK
        self.mlp = nn.Sequential(
            nn.LayerNorm(TRAINED_RANK), nn.Linear(TRAINED_RANK, wide), nn.GELU(), nn.Linear(wide, TRAINED_RANK)
        )
        with torch.no_grad():
            for name, parameter in self.mlp.named_parameters():
                if name == "1.weight":
                    parameter.normal_(std=TRAINED_RANK**-0.5, generator=draw)
                elif name != "0.weight":
                    parameter.zero_()
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, x_BP: Tensor) -> Tensor:
        h_BR = x_BP @ self.encode_PR / self.spread
        return h_BR + self.mlp(h_BR) if self.with_mlp else h_BR


def loss_of(layer: Layer, halves: Sequence[Tensor], targets: Sequence[Tensor], site_B: Tensor, terms: str) -> Tensor:
    """Error of predicting targets, and contrast of both halves among people of a site: what is in ``terms``."""
    h = [layer(x_BP) for x_BP in halves]
    loss = torch.zeros(())
    if "prediction" in terms:
        of = [1 - cosine_similarity(h[i] @ layer.decode_RP, targets[i]).mean() for i in (0, 1)]
        loss = loss + of[0] + of[1]
    if "contrast" in terms:
        logits_BB = normalize(h[0], dim=1) @ normalize(h[1], dim=1).T * layer.log_scale.exp()
        logits_BB = logits_BB.masked_fill(site_B[:, None] != site_B, -1e9)
        own_B = torch.arange(len(site_B))
        loss = loss + (cross_entropy(logits_BB, own_B) + cross_entropy(logits_BB.T, own_B)) / 2
    return loss


def trained(
    span: Span,
    terms: str,
    seed: int,
    at_denoiser: bool = True,
    mlp: bool = False,
    sites_a_step: int = SITES_A_STEP,
) -> np.ndarray:
    """Features of whole recordings ``(N, R)`` after ``STEPS`` steps."""
    draw = torch.Generator().manual_seed(seed)  # folds run in threads, which share torch's own
    layer, n_people = Layer(span, draw, at_denoiser, mlp), len(span.site_M)
    halves_AP, target_AP = (torch.tensor(x, dtype=torch.float32) for x in (span.halves_AP, span.target_AP))
    site_M = torch.tensor(span.site_M)
    sites = torch.unique(site_M)
    fast = [layer.encode_PR, layer.decode_RP, layer.log_scale]
    optimizer = torch.optim.Adam([{"params": fast, "lr": 1e-2}, {"params": list(layer.mlp.parameters()), "lr": 1e-3}])
    for _ in range(STEPS):
        rows = []
        for site in sites[torch.randperm(len(sites), generator=draw)[:sites_a_step]]:
            members = torch.nonzero(site_M == site)[:, 0]
            chosen = torch.randperm(len(members), generator=draw)[: PEOPLE_A_STEP // sites_a_step]
            rows.append(members[chosen])
        first = torch.cat(rows)
        second, site_B = n_people + first, site_M[first]
        halves, targets = ([x_AP[first], x_AP[second]] for x_AP in (halves_AP, target_AP))
        loss = loss_of(layer, halves, targets, site_B, terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found: np.ndarray = layer(torch.tensor(span.whole_NP, dtype=torch.float32)).double().numpy()
    return found


class Layers:
    """Scores of layers, fitted on each training part, on everybody, and on shuffled pairs."""

    def __init__(self, bold: Bold) -> None:
        gram_3N3N, site_N = bold.halves.stacked.gram_NN, np.asarray(bold.labelled.sites)
        self.scorer, self.everyone = bold.scorer, bold.everyone
        self.span = lru_cache(maxsize=None)(
            lambda train, *how: Span(gram_3N3N, site_N, np.frombuffer(train, dtype=np.int64), *how)
        )

    def features(
        self, train: np.ndarray, how: dict[str, Any], shuffled: bool = False, to_whole: bool = False
    ) -> np.ndarray:
        """Of all units, by training where ``how`` names its terms, else by the closed form of so many numbers."""
        span: Span = self.span(train.astype(np.int64).tobytes(), shuffled, to_whole)
        found: np.ndarray = trained(span, **how) if "terms" in how else span.whole_NP @ span.denoiser(**how)[0]
        return found

    def gram_of(self, how: dict[str, Any], **pairs: bool) -> GramOf:
        """Fitted on each training part; ``pairs`` are shuffled, or of halves to the whole."""
        return lambda train: combined([gram(self.features(train, how, **pairs))], train)

    def add(self, name: str, how: dict[str, Any], everybody: bool = False, shuffled: bool = False) -> None:
        """One row."""
        of = fixed([gram(self.features(self.everyone, how))]) if everybody else self.gram_of(how, shuffled=shuffled)
        self.scorer.add(name, on_grams(SVM, of))

    def membership(self, rank: int) -> float:
        """AUROC of telling a random half of the people, whom a denoiser was fitted on, from the rest by its length."""
        return self.scorer.given_away(lambda rows: np.linalg.norm(self.features(rows, {"rank": rank}), axis=1))[0]


def add_layers(layers: Layers) -> dict[str, float]:
    """All rows of layers; what gives the people away, by rank."""
    for rank in RANKS:
        layers.add(f"denoiser of {rank} numbers", {"rank": rank})
        layers.add(f"denoiser of {rank} numbers, of everybody (transductive)", {"rank": rank}, everybody=True)
    layers.add(f"denoiser of {TRAINED_RANK} numbers, pairs shuffled", {"rank": TRAINED_RANK}, shuffled=True)
    for seed in SEEDS:
        both: dict[str, Any] = {"terms": "prediction and contrast", "seed": seed}
        layers.add(f"trained on from {TRAINED_RANK} numbers, seed {seed}", both)
        layers.add(f"the same, pairs shuffled, seed {seed}", both, shuffled=True)
        layers.add(f"the same with an MLP beside it, seed {seed}", {**both, "mlp": True})
        layers.add(f"the same from random weights, seed {seed}", {**both, "at_denoiser": False})
    return {str(rank): layers.membership(rank) for rank in RANKS}


def add_export(bold: Bold, folder: Path, label: str, name: str) -> None:
    """The spatial h of an export and of its untrained encoder, alone and beside the denoiser."""
    model = from_pretrained(folder)
    config = EvaluateConfig(model_dir=folder, corpus_dir=bold.corpus.path, out_dir=folder, label=label)
    for kind, encoder in (("pretrained", model), ("untrained", untrained_like(model))):
        parts = learned_parts(encoder, bold.corpus, bold.labelled.units, with_windows(config, model), kind)["fmri"]
        own = fixed([gram(parts["spatial"])])
        bold.scorer.add(f"{name}, {kind}", on_grams(SVM, own))
        for share in SHARES if kind == "pretrained" else ():
            beside = weighed([(own, share), (bold.denoised, 1 - share)])
            bold.scorer.add(f"{name}, {share:g} of it beside the denoiser", on_grams(SVM, beside))


def main(argv: Sequence[str] | None = None) -> int:
    """Score everything, write the file."""
    exports = {"nargs": "*", "default": [], "metavar": "NAME=DIR", "help": "of BOLD, all pretrained alike"}
    arguments = arguments_of(__doc__, argv, {"--exports": exports})
    bold = Bold.of(arguments.corpus, arguments.label)
    bold.add_rulers()
    given_away = add_layers(Layers(bold))
    for name, _, folder in (export.partition("=") for export in arguments.exports):
        add_export(bold, Path(folder), arguments.label, name)
    return write(bold.scorer, arguments.label, "learned_gain_{people}", arguments.out, membership_by_rank=given_away)


if __name__ == "__main__":
    raise SystemExit(main())
