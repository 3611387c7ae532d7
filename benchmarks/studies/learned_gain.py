"""Whether anything that is learned without labels adds to the denoised root of connectivity: BOLD, sites left out.

python benchmarks/studies/learned_gain.py --corpus DIR --label COLUMN [--exports NAME=DIR ...] [--out FILE]

The denoiser (mcsp/evaluate/readout/grams.py) is a linear layer with a closed form. Here it is one of few numbers, the
start of a network that is trained on with the objective's own terms, prediction of the other half within sites and
contrast within sites, or that is trained from random weights; each fitted on the training people of a fold, or on
everybody, and on pairs shuffled within sites. Then the spatial h of exports, alone and beside the denoiser. Last, how
well a denoiser of few numbers tells the people it was fitted on from others of the same sites.

Features of recordings and halves are taken in the span of the training halves, where all that training can change lies.

Shape letters: N units, M training units, P dimensions of the span, R numbers of a layer.
"""

import argparse
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from read_out_ablation import Scorer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import from_pretrained
from mcsp.evaluate.baselines import measure
from mcsp.evaluate.evaluate import untrained_like, with_windows
from mcsp.evaluate.features import learned_parts
from mcsp.evaluate.methods import Halves
from mcsp.evaluate.readout.classifiers import SVM, on_grams
from mcsp.evaluate.readout.grams import DENOISER_PENALTY, combined, fixed, gram, weighed, within_sites
from mcsp.evaluate.splits import leave_site_out
from mcsp.evaluate.units import read_labels
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "scikit-learn")
FEW = {"auroc_twentieth_of_labels": 0.05, "auroc_tenth_of_labels": 0.1}
RANKS, TRAINED_RANK, SEEDS, STEPS = (16, 64, 256), 64, (0, 1), 200
PEOPLE_A_STEP, SITES_A_STEP = 64, 4
SHARES = (0.05, 0.1, 0.25)


class Span:
    """Halves of training people ``(2 M, P)``, and all whole recordings ``(N, P)``, as coordinates of one space."""

    def __init__(self, gram_3N3N: np.ndarray, site_N: np.ndarray, train: np.ndarray, shuffled: bool) -> None:
        own_AA, whole_NA = within_sites(gram_3N3N, site_N, train, shuffled)
        value_P, vector_AP = np.linalg.eigh(own_AA)
        kept = value_P > 1e-8 * value_P[-1]
        self.value_P, vector_AP = value_P[kept], vector_AP[:, kept]
        self.halves_AP = vector_AP * np.sqrt(self.value_P)
        self.whole_NP = whole_NA @ (vector_AP / np.sqrt(self.value_P))
        self.site_M = np.unique(site_N[train], return_inverse=True)[1]

    def denoiser(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The ridge of ``rank`` numbers: ``(P, R)`` to them, ``(R, P)`` to the other half; reduced-rank regression."""
        other_AP = np.roll(self.halves_AP, len(self.site_M), axis=0)
        penalty = DENOISER_PENALTY * self.value_P.sum() / len(other_AP)
        ridge_PP = (self.halves_AP.T @ other_AP) / (self.value_P + penalty)[:, None]
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


def loss_of(layer: Layer, halves: Sequence[Tensor], site_B: Tensor, terms: str) -> Tensor:
    """Prediction error of the other half, and contrast of both halves among people of a site, as ``terms`` names."""
    h = [layer(x_BP) for x_BP in halves]
    loss = torch.zeros(())
    if "prediction" in terms:
        of = [1 - cosine_similarity(h[i] @ layer.decode_RP, halves[1 - i]).mean() for i in (0, 1)]
        loss = loss + of[0] + of[1]
    if "contrast" in terms:
        logits_BB = normalize(h[0], dim=1) @ normalize(h[1], dim=1).T * layer.log_scale.exp()
        logits_BB = logits_BB.masked_fill(site_B[:, None] != site_B, -1e9)
        own_B = torch.arange(len(site_B))
        loss = loss + (cross_entropy(logits_BB, own_B) + cross_entropy(logits_BB.T, own_B)) / 2
    return loss


def trained(span: Span, terms: str, seed: int, at_denoiser: bool = True, mlp: bool = False) -> np.ndarray:
    """Features of whole recordings ``(N, R)`` after ``STEPS`` steps."""
    draw = torch.Generator().manual_seed(seed)  # folds run in threads, which share torch's own
    layer, n_people = Layer(span, draw, at_denoiser, mlp), len(span.site_M)
    halves_AP, site_M = torch.tensor(span.halves_AP, dtype=torch.float32), torch.tensor(span.site_M)
    sites = torch.unique(site_M)
    fast = [layer.encode_PR, layer.decode_RP, layer.log_scale]
    optimizer = torch.optim.Adam([{"params": fast, "lr": 1e-2}, {"params": list(layer.mlp.parameters()), "lr": 1e-3}])
    for _ in range(STEPS):
        rows = []
        for site in sites[torch.randperm(len(sites), generator=draw)[:SITES_A_STEP]]:
            members = torch.nonzero(site_M == site)[:, 0]
            chosen = torch.randperm(len(members), generator=draw)[: PEOPLE_A_STEP // SITES_A_STEP]
            rows.append(members[chosen])
        of_step = torch.cat(rows)
        loss = loss_of(layer, [halves_AP[of_step], halves_AP[n_people + of_step]], site_M[of_step], terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found: np.ndarray = layer(torch.tensor(span.whole_NP, dtype=torch.float32)).double().numpy()
    return found


class Layers:
    """Scores of layers, fitted on each training part, on everybody, and on shuffled pairs."""

    def __init__(self, scorer: Scorer, halves: Halves) -> None:
        gram_3N3N, site_N = halves.stacked.gram_NN, np.asarray(scorer.labelled.sites)
        self.scorer, self.everyone = scorer, np.arange(len(site_N))
        self.span = lru_cache(maxsize=None)(
            lambda train, shuffled: Span(gram_3N3N, site_N, np.frombuffer(train, dtype=np.int64), shuffled)
        )

    def features(self, train: np.ndarray, how: dict[str, Any], shuffled: bool = False) -> np.ndarray:
        """Of all units, by training where ``how`` names its terms, else by the closed form of so many numbers."""
        span: Span = self.span(train.astype(np.int64).tobytes(), shuffled)
        found: np.ndarray = trained(span, **how) if "terms" in how else span.whole_NP @ span.denoiser(**how)[0]
        return found

    def add(self, name: str, how: dict[str, Any], everybody: bool = False, shuffled: bool = False) -> None:
        """One row."""

        def of(train: np.ndarray) -> np.ndarray:
            return combined([gram(self.features(train, how, shuffled))], train)

        of_everybody = fixed([gram(self.features(self.everyone, how, shuffled))]) if everybody else of
        self.scorer.add(name, on_grams(SVM, of_everybody))

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


def add_export(scorer: Scorer, halves: Halves, corpus: Corpus, folder: Path, label: str, name: str) -> None:
    """The spatial h of an export and of its untrained encoder, alone and beside the denoiser."""
    model = from_pretrained(folder)
    config = EvaluateConfig(model_dir=folder, corpus_dir=corpus.path, out_dir=folder, label=label)
    denoised = halves.gram_of(np.arange(len(halves.x_NF)))
    for kind, encoder in (("pretrained", model), ("untrained", untrained_like(model))):
        parts = learned_parts(encoder, corpus, scorer.labelled.units, with_windows(config, model), kind)["fmri"]
        own = fixed([gram(parts["spatial"])])
        scorer.add(f"{name}, {kind}", on_grams(SVM, own))
        for share in SHARES if kind == "pretrained" else ():
            scorer.add(
                f"{name}, {share:g} of it beside the denoiser",
                on_grams(SVM, weighed([(own, share), (denoised, 1 - share)])),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Score everything, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--exports", nargs="*", default=[], metavar="NAME=DIR", help="of BOLD, all pretrained alike")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    corpus = Corpus(arguments.corpus)
    labelled = read_labels(corpus, arguments.label, None, None)
    keys = [unit.key for unit in labelled.units]
    folds = leave_site_out(keys, labelled.y_N, labelled.subjects, labelled.sites)
    ruler, scorer = measure(corpus, labelled.units)["fmri"], Scorer(labelled, folds, FEW)
    assert ruler.halves is not None
    halves = Halves(ruler.features["root"], ruler.halves, labelled.sites)
    scorer.add_blocks("root of connectivity", [halves.x_NF])
    scorer.add("denoiser", on_grams(SVM, halves.gram_of(np.arange(len(keys)))))
    given_away = add_layers(Layers(scorer, halves))
    for name, _, folder in (export.partition("=") for export in arguments.exports):
        add_export(scorer, halves, corpus, Path(folder), arguments.label, name)
    people = len(set(labelled.subjects))
    content = {
        **made_by(PACKAGES), "people": people, "label": arguments.label, "splits_sha256": folds.sha256,
        "rows": scorer.found, "membership_by_rank": given_away,
    }  # fmt: skip
    out = arguments.out or ROOT / "benchmarks" / "results" / f"learned_gain_{people}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
