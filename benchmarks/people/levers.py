"""What ways to learn from halves without labels bring to BOLD, sites left out: layers of few numbers, and the encoder.

python benchmarks/people/levers.py --data DIR [--positions FILE] [--work DIR] [--steps 300] [--out FILE]

DIR and FILE are those of benchmarks/abide.py. Layers (learned_gain.py): a half predicts the whole recording instead of
the other half; one site a step instead of four; the learned part beside the root of connectivity, at a share that is
chosen without labels, by how well halves of people whom it was not fitted on find each other. The encoder at its
preset: one site a step; the moving average of its weights; the weights of least loss on a tenth of the people, whom
training has not seen. Layers have controls of shuffled pairs. Last, tokens at the parcels that start at the
directions of the corpus, with half of the people in pretraining: evaluate's own table, and whom the weights give away.
What WORK has is not made again. Writes benchmarks/results/levers_<people>.json.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from learned_gain import TRAINED_RANK, Layers, Span
from scipy.linalg import solve
from study import DENOISER, ROOT_ROW, Bold, write

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
    scales,
    within_sites,
    without_means,
)
from mcsp.run_log import read_metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import abide

LABEL, SEED = "diagnosis", 0
KEPT = ["ema_decay=0.99", "keep_best=loss", "validate_every=25"]
SHUFFLED = "pairs shuffled within sites"
# The control of the preset's encoder is in the results of abide.py.
RUNS: dict[str, list[str]] = {
    "four sites a step": [],
    "one site a step, 150 steps": ["sites_per_batch=1", "steps=150"],
}
EXPORTS = {"last weights": [], "averaged weights": ["--ema"], "weights best in validation": ["--best"]}
PARCELS = ["model.fmri_parcels=corpus", "model.spatial_form=root", "spatial_start=corpus"]
PARCEL_STEPS = 100
SPLITS = {"tenth": ("corpus-tenth", ["split_fractions=[0.9, 0.1, 0]"]), "half": ("corpus-half", [abide.HALF_SPLIT])}
RULERS = [ROOT_ROW, DENOISER]
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def to_whole(gram_3N3N: np.ndarray, site_N: np.ndarray, shuffled: bool = False) -> GramOf:
    """The denoiser with the whole recording as target of both halves; ``shuffled``: of another person of the site."""

    def of(train: np.ndarray) -> np.ndarray:
        own_AA, every_A = within_sites(gram_3N3N, site_N, train)
        penalty = DENOISER_PENALTY * np.trace(own_AA) / len(own_AA)
        ridge_NA = solve(own_AA + penalty * np.eye(len(own_AA)), every_A[: len(site_N)].T, assume_a="pos").T
        whose, site_M = others_of_site(train, site_N) if shuffled else train, site_N[train]
        whole_MM = without_means(without_means(gram_3N3N[np.ix_(whose, whose)], site_M).T, site_M)
        return combined([ridge_NA @ np.tile(whole_MM, (2, 2)) @ ridge_NA.T], train)

    return of


def found_again(gram_3N3N: np.ndarray, site_N: np.ndarray, rows: np.ndarray) -> float:
    """How far the other half of a person stands out from those of others of the site, in their standard deviations.

    Mean over people ``rows`` and both halves, by correlation without the mean of a site. Whether it is the first of all
    is no measure here: with connectivity everybody's is.
    """
    n_units, stand_out = len(site_N), []
    for site in np.unique(site_N[rows]):
        members = rows[site_N[rows] == site]
        if len(members) < 3:
            continue
        halves = np.concatenate([n_units + members, 2 * n_units + members])
        centred = np.eye(len(halves)) - 1 / len(halves)
        centred = centred @ gram_3N3N[np.ix_(halves, halves)] @ centred
        length = np.sqrt(np.diagonal(centred))
        alike = (centred / length / length[:, None])[: len(members), len(members) :]
        for one in (alike, alike.T):
            others = one[~np.eye(len(one), dtype=bool)].reshape(len(one), -1)
            stand_out += list((np.diagonal(one) - others.mean(1)) / others.std(1))
    return float(np.mean(stand_out))


class Shared:
    """The learned part beside the root of connectivity, at a share that each training part chooses without labels."""

    def __init__(
        self, root_3N3N: np.ndarray, site_N: np.ndarray, learned_of: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """``learned_of`` gives the Gram matrix ``(3 N, 3 N)`` of what is learned from people of given indices."""
        self.root_3N3N, self.site_N, self.learned_of = root_3N3N, site_N, learned_of
        self.share_of: dict[bytes, float] = {}

    def _sum(self, learned_3N3N: np.ndarray, train: np.ndarray, share: float) -> np.ndarray:
        """Both at equal spread of the recordings of ``train``, as the read-out weighs them."""
        n_units = len(self.site_N)
        wholes = [x[:n_units, :n_units] for x in (learned_3N3N, self.root_3N3N)]
        a, b = scales(wholes, train, [share, 1 - share])
        out: np.ndarray = a * learned_3N3N + b * self.root_3N3N
        return out

    def share(self, train: np.ndarray) -> float:
        """The least of the best: learned from one half of each site's people, judged on the other, and vice versa."""
        order = np.random.default_rng(SEED).permutation(train)
        order = order[np.argsort(self.site_N[order], kind="stable")]
        parts, stand_out = (np.sort(order[::2]), np.sort(order[1::2])), np.zeros(len(SHARES))
        for fitted, judged in (parts, parts[::-1]):
            learned_3N3N = self.learned_of(fitted)
            stand_out += [found_again(self._sum(learned_3N3N, fitted, s), self.site_N, judged) for s in SHARES]
        return SHARES[int(stand_out.argmax())]

    def of(self, train: np.ndarray) -> np.ndarray:
        """The Gram matrix of all recordings for a training part."""
        share = self.share_of[train.tobytes()] = self.share(train)
        n_units = len(self.site_N)
        return combined([self._sum(self.learned_of(train), train, share)[:n_units, :n_units]], train)


class Study:
    """Rows with differences from others, and the shares that were chosen."""

    def __init__(self, bold: Bold) -> None:
        self.bold, self.site_N = bold, np.asarray(bold.labelled.sites)
        self.gains: dict[str, Any] = {}
        self.shares: dict[str, list[float]] = {}

    @cached_property
    def gram_3N3N(self) -> np.ndarray:
        """Inner products of the root of connectivity of whole recordings and halves."""
        return self.bold.halves.stacked.gram_NN

    def add(self, name: str, of: GramOf, others: Sequence[str] = ()) -> None:
        """One row, and what it gains over ``others``."""
        self.bold.scorer.add(name, on_grams(SVM, of))
        self.gains[name] = self.bold.scorer.differences(name, others)

    def add_shared(self, name: str, learned_of: Callable[[np.ndarray], np.ndarray], others: Sequence[str] = ()) -> None:
        """One row of a learned part beside the root."""
        shared = Shared(self.gram_3N3N, self.site_N, learned_of)
        self.add(name, shared.of, others)
        self.shares[name] = sorted(shared.share_of.values())

    def layers(self) -> None:
        """Half to whole, one site a step, and shares, each after its control and what it differs from."""
        self.bold.add_rulers()
        layers, seed = Layers(self.bold), {"seed": SEED}
        whole = f"denoiser, half to whole, {SHUFFLED}"
        self.add(whole, to_whole(self.gram_3N3N, self.site_N, shuffled=True), RULERS)
        self.add("denoiser, half to whole", to_whole(self.gram_3N3N, self.site_N), [*RULERS, whole])
        numbers, alone = f"{TRAINED_RANK} numbers", {"terms": "prediction", **seed}
        for name, how in (("", {"rank": TRAINED_RANK}), (", trained on by prediction", alone)):
            before: list[str] = []
            for target, to in (("half", False), ("whole", True)):
                for control, shuffled in ((f", {SHUFFLED}", True), ("", False)):
                    row = f"{numbers}, half to {target}{name}{control}"
                    self.add(
                        row,
                        layers.gram_of(how, shuffled=shuffled, to_whole=to),
                        RULERS if shuffled else [*RULERS, *before],
                    )
                    before.append(row)
        for sites, words in ((4, "four sites a step"), (1, "one site a step")):
            how = {"terms": "prediction and contrast", "sites_a_step": sites, **seed}
            row = f"{numbers}, trained on, {words}"
            self.add(f"{row}, {SHUFFLED}", layers.gram_of(how, shuffled=True), RULERS)
            usual = [f"{numbers}, half to half", f"{numbers}, trained on, four sites a step"][: 1 + (sites == 1)]
            self.add(row, layers.gram_of(how), [*RULERS, f"{row}, {SHUFFLED}", *usual])
        for rank, words in ((TRAINED_RANK, numbers), (10**6, DENOISER)):
            row = f"{words} beside the root, share chosen without labels"
            self.add_shared(f"{row}, {SHUFFLED}", self.through(rank, shuffled=True), RULERS)
            self.add_shared(row, self.through(rank), [*RULERS, f"{row}, {SHUFFLED}"])

    def through(self, rank: int, shuffled: bool = False) -> Callable[[np.ndarray], np.ndarray]:
        """Recordings and halves through the denoiser of people of given indices."""

        def of(rows: np.ndarray) -> np.ndarray:
            span = Span(self.gram_3N3N, self.site_N, rows, shuffled)
            return gram(span.all_3NP @ span.denoiser(rank)[0])

        return of

    def encoders(self, exports: dict[str, Path]) -> None:
        """The spatial h of exports, which stays beside each; the untrained one is the same for all."""
        first, before = next(iter(exports.values())), list[str]()
        for name in ("untrained", *exports):
            kept = (first if name == "untrained" else exports[name]) / f"{name.split()[0]}-h.npy"
            if not kept.is_file():
                np.save(kept, self.spatial_h(kept.parent, name == "untrained"))
            self.add(f"encoder, {name}", fixed([gram(np.load(kept))]), before)
            before.append(f"encoder, {name}")

    def spatial_h(self, folder: Path, untrained: bool) -> np.ndarray:
        """Mean over windows ``(N, F)``, as an evaluation takes it."""
        config = EvaluateConfig(model_dir=folder, corpus_dir=self.bold.corpus.path, out_dir=folder, label=LABEL)
        model = from_pretrained(folder)
        config, encoder = with_windows(config, model), untrained_like(model) if untrained else model
        found = learned_parts(encoder, self.bold.corpus, self.bold.labelled.units, config, folder.name)
        h_NF: np.ndarray = found["fmri"]["spatial"]
        return h_NF


def exported(work: Path, corpus: Path, steps: int) -> tuple[dict[str, Path], dict[str, Any]]:
    """Pretrain; the exports of every run, and its settings and losses on the people set aside."""
    config, found, told = abide.Asked(steps, [*abide.PRETRAINING, *KEPT], []), dict[str, Path](), dict[str, Any]()
    for name, changes in RUNS.items():
        trained = abide.pretrained(work, corpus, name.replace(" ", "-").replace(",", ""), SEED, changes, config)
        for kind, flags in EXPORTS.items():
            model = found[f"{name}, {kind}"] = work / f"{trained.name}-{kind.replace(' ', '-')}"
            abide.run(abide.launcher("export", trained, model, *flags), model / "config.json")
        losses = {int(x["step"]): x["validation/loss"] for x in read_metrics(trained) if "validation/loss" in x}
        told[name] = {
            "steps": int(read_metrics(trained)[-1]["step"]), "changes": [*KEPT, *changes], "validation_loss": losses,
            "best_step": min(losses, key=losses.__getitem__),
        }  # fmt: skip
    return found, told


def half_at_parcels(work: Path, corpus: Path) -> dict[str, Any]:
    """Tokens at the parcels, half of the people in pretraining: what evaluate finds."""
    config = abide.Asked(PARCEL_STEPS, abide.PRETRAINING, [])
    return abide.one_run(work, corpus, "parcels-half", SEED, PARCELS, config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, score everything, write the file."""
    arguments = abide.parsed(__doc__, 300, argv)
    chosen, positions, work = abide.wanted(arguments)
    work.mkdir(parents=True, exist_ok=True)
    corpora = abide.built(chosen, positions, work, SPLITS)
    exports, told = exported(work, corpora["tenth"], arguments.steps)
    half = half_at_parcels(work, corpora["half"])
    bold = Bold.of(corpora["tenth"], LABEL)
    study, made = Study(bold), work / "layers.json"
    if not made.is_file():
        study.layers()
        made.write_text(json.dumps([bold.scorer.found, study.gains, study.shares]))
    bold.scorer.found, study.gains, study.shares = json.loads(made.read_text())
    study.encoders(exports)
    more = {"differences": study.gains, "shares": study.shares, "runs_of_the_encoder": told, "half_at_parcels": half}
    return write(bold.scorer, LABEL, "levers_{people}", arguments.out, **more)


if __name__ == "__main__":
    raise SystemExit(main())
