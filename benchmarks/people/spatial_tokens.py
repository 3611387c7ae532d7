"""What spatial tokens at the corpus's parcels, and their start, bring to the learned part: BOLD, sites left out.

python benchmarks/people/spatial_tokens.py --corpus DIR --label COLUMN --exports NAME=DIR [NAME=DIR ...] [--out FILE]

The spatial h of exports, alone and beside the denoiser; of the same architecture with random weights; of its start
alone (spatial_start=corpus, no step), both at parcels and at anchors. Differences from these, from the rulers and from
each other have intervals over people. Beside the label: whether the halves of a recording find each other among people
of one site, and how well features tell one site from the rest. Writes benchmarks/results/spatial_tokens_<people>.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from study import DENOISER, ROOT_ROW, Bold, arguments_of, write

from mcsp.batch import collate
from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import from_pretrained
from mcsp.evaluate.evaluate import UNTRAINED_SEED, with_windows
from mcsp.evaluate.features import UnitMean, read_windows
from mcsp.evaluate.readout.classifiers import SVM, on_grams
from mcsp.evaluate.readout.grams import fixed, gram, weighed
from mcsp.model.mcsp import MCSP
from mcsp.model.spatial import SpatialEncoder
from mcsp.schema import Window

SHARE, BATCH, FOLDS = 0.25, 64, 5


class Windows:
    """Windows of every unit, as an evaluation cuts them, and the halves of its recording."""

    def __init__(self, corpus: Corpus, units: Sequence[Any], config: EvaluateConfig) -> None:
        self.cut = list(read_windows(corpus, units, "fmri", config, "windows"))
        self.halves: list[tuple[int, Window]] = []
        for i, unit in enumerate(units):
            whole = unit.of("fmri")[0]
            length = whole.n_samples // 2
            self.halves += [(2 * i + k, corpus.read_window(whole, k * length, length)) for k in (0, 1)]
        self.n_units = len(units)

    def spatial_h(self, model: MCSP) -> tuple[np.ndarray, np.ndarray]:
        """Mean over windows ``(N, F)``, and of halves ``(N, 2, F)``."""
        found = []
        for windows, rows in ((self.cut, self.n_units), (self.halves, 2 * self.n_units)):
            mean = UnitMean(rows)
            for first in range(0, len(windows), BATCH):
                some = windows[first : first + BATCH]
                signal = collate([[window] for _, window in some]).signals["fmri"]
                with torch.inference_mode():
                    h_BF = model.encode_domain("fmri", "spatial", signal).double().numpy()
                for (i, _), h_F in zip(some, h_BF, strict=True):
                    mean.add(i, h_F)
            x_NF = mean.mean()
            assert x_NF is not None
            found.append(x_NF)
        return found[0], found[1].reshape(self.n_units, 2, -1)

    def moments(self, model: MCSP) -> torch.Tensor:
        """Of one window of every unit, what a start is made from ``(N, I, I)``."""
        firsts = dict(reversed(self.cut))
        signals = [collate([[firsts[i]]]).signals["fmri"] for i in range(self.n_units)]
        return torch.stack([spatial(model).moment(signal) for signal in signals])

    def started(self, model: MCSP) -> MCSP:
        """``model`` with its spatial tokens at the leading directions of all units."""
        spatial(model).start_at(self.moments(model).sum(0))
        return model


def spatial(model: MCSP) -> SpatialEncoder:
    """The encoder of BOLD's connectivity."""
    encoder = model.encoder("fmri", "spatial")
    assert isinstance(encoder, SpatialEncoder)
    return encoder


def membership_of_start(moment_NII: torch.Tensor, numbers: int) -> float:
    """AUROC of telling a random half of the people, whom a start is made from, from the rest.

    By the share of a person's connectivity that its directions hold.
    """
    member_N = np.random.default_rng(0).permutation(len(moment_NII)) < len(moment_NII) // 2
    leading_IK = torch.linalg.eigh(moment_NII[member_N].sum(0))[1][:, -numbers:]
    held_N = torch.einsum("ik,nij,jk->n", leading_IK, moment_NII, leading_IK) / moment_NII.diagonal(dim1=1, dim2=2).sum(
        1
    )
    return float(roc_auc_score(member_N, held_N.numpy()))


def random_like(model: MCSP, **changes: Any) -> MCSP:
    """The same architecture, but for ``changes``, with the random weights of an evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        return MCSP(model.config.model_copy(update=changes)).eval()


def identification(half_N2F: np.ndarray, sites: Sequence[str]) -> float:
    """How often the half most like a person's first one, among the second halves of the site, is that person's.

    By correlation, without the mean of all halves of the site; chance is one over its people.
    """
    site_N, hits = np.asarray(sites), []
    for site in np.unique(site_N):
        of_site = half_N2F[site_N == site] - half_N2F[site_N == site].mean((0, 1))
        unit = of_site / np.linalg.norm(of_site, axis=-1, keepdims=True)
        hits += list((unit[:, 0] @ unit[:, 1].T).argmax(1) == np.arange(len(unit)))
    return float(np.mean(hits))


def site_auroc(x_NF: np.ndarray, sites: Sequence[str]) -> float:
    """One site against the rest, mean over sites of :data:`FOLDS` people and more, in folds of people."""
    site_N, readout = np.asarray(sites), on_grams(SVM, fixed([gram(x_NF)]))
    names = [site for site in np.unique(site_N) if (site_N == site).sum() >= FOLDS]
    rows = np.flatnonzero(np.isin(site_N, names))
    score_KN = np.zeros((len(names), len(site_N)))
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(rows[:, None], site_N[rows]):
        score = readout(rows[train])
        for k, name in enumerate(names):
            score_KN[k, rows[test]] = score(rows[test], rows[train], (site_N == name).astype(int))
    return float(np.mean([roc_auc_score(site_N[rows] == n, score_KN[k, rows]) for k, n in enumerate(names)]))


def compared(
    bold: Bold, windows: Windows, exports: dict[str, Any], told: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Score h of every model, into ``told`` too; what it gains over what was scored before."""
    first, scorer, sites = next(iter(exports.values())), bold.scorer, bold.labelled.sites
    models: dict[str, MCSP] = {
        "random, at anchors": random_like(first, fmri_parcels=()),
        "start alone, at anchors": windows.started(random_like(first, fmri_parcels=())),
        "random, at parcels": random_like(first),
        "start alone, at parcels": windows.started(random_like(first)),
        **exports,
    }
    found: dict[str, Any] = {}
    for name, model in models.items():
        x_NF, half_N2F = windows.spatial_h(model)
        own, beside = fixed([gram(x_NF)]), f"{name}, {SHARE:g} of it beside the denoiser"
        scorer.add(name, on_grams(SVM, own))
        scorer.add(beside, on_grams(SVM, weighed([(own, SHARE), (bold.denoised, 1 - SHARE)])))
        told[name] = {"same_person": identification(half_N2F, sites), "site_auroc": site_auroc(x_NF, sites)}
        found[name] = scorer.differences(name, [ROOT_ROW, *(other for other in models if other in found)])
        found[beside] = scorer.differences(beside, [DENOISER])
        print(f"{name:<60}", {k: round(v, 3) for k, v in told[name].items()}, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Score everything, write the file."""
    exports_of = {"nargs": "+", "required": True, "metavar": "NAME=DIR", "help": "of BOLD; the first at parcels"}
    arguments = arguments_of(__doc__, argv, {"--exports": exports_of})
    bold = Bold.of(arguments.corpus, arguments.label)
    folders = {name: Path(folder) for name, _, folder in (export.partition("=") for export in arguments.exports)}
    exports = {name: from_pretrained(folder) for name, folder in folders.items()}
    first, folder = next(iter(exports.values())), next(iter(folders.values()))
    config = EvaluateConfig(model_dir=folder, corpus_dir=bold.corpus.path, out_dir=folder, label=arguments.label)
    windows = Windows(bold.corpus, bold.labelled.units, with_windows(config, first))
    bold.add_rulers()
    told = {
        ROOT_ROW: {
            "same_person": identification(np.stack(bold.root[1], 1), bold.labelled.sites),
            "site_auroc": site_auroc(bold.halves.x_NF, bold.labelled.sites),
        }
    }
    found = compared(bold, windows, exports, told)
    numbers = spatial(first).h_width // spatial(first).n_anchors
    given_away = membership_of_start(windows.moments(first), numbers)
    more = {"beside_the_label": told, "differences": found, "membership_of_start": given_away}
    return write(bold.scorer, arguments.label, "spatial_tokens_{people}", arguments.out, **more)


if __name__ == "__main__":
    raise SystemExit(main())
