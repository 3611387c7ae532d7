"""Fine-tuning of an export on a labelled corpus, in subject-disjoint folds beside the frozen probe.

Classes are fitted by cross-entropy, each class weighed alike; a number by the squared error of its standard score.

Shape letters: N units, O outputs.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mcsp.batch import collate
from mcsp.config import FinetuneConfig
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.encode.recording import split_parts
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.evaluate import scores
from mcsp.evaluate.deploy import head_of, heads_of, write_folder
from mcsp.evaluate.evaluate import find_overlap, versions, with_windows
from mcsp.evaluate.features import unit_features
from mcsp.evaluate.readout.classifiers import LOGISTIC, RIDGE, cross_validate, on_grams, with_mean
from mcsp.evaluate.readout.grams import fixed, gram
from mcsp.evaluate.splits import k_fold, labelled_part, leave_site_out
from mcsp.evaluate.units import Unit, labels_of, open_corpus
from mcsp.output import write_whole
from mcsp.schema import Modality, Purpose, Window, random_key, unit_interval
from mcsp.windows import longest_window, random_start, window_starts

# The loss of outputs (B, O) of the units of given indices.
Loss = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


class Finetuning:
    """Everything that the folds share."""

    def __init__(self, config: FinetuneConfig) -> None:
        """Open the export and the corpus and encode every unit once; ``ValueError`` where something does not fit."""
        self.model = from_pretrained(config.model_dir)
        self.corpus = open_corpus(config, config.out_dir, self.model)
        self.config = config = with_windows(config, self.model)
        self.labelled = labels_of(self.corpus, config)
        self.task = self.labelled.task
        assert config.window_seconds is not None
        self.window_seconds = config.window_seconds
        keys, y_N, groups = [u.key for u in self.labelled.units], self.labelled.y_N, self.labelled.groups
        if config.protocol == "kfold":
            self.folds = k_fold(keys, y_N, groups, config.folds, 1)
        else:
            self.folds = leave_site_out(keys, y_N, groups, self.labelled.sites)
        self.frozen = unit_features(self.model, self.corpus, self.labelled.units, config, "frozen features")
        self.blocks = {m: list(self.model.feature_widths(m).values()) for m in self.frozen}
        self.held_out: dict[Modality, np.ndarray] = {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def train(self, rows: np.ndarray, fold: int) -> tuple[MCSPClassifier, list[dict[str, float]]]:
        """A classifier trained on the units ``rows``, and the losses of every pass; of a number it gives that number.

        A part of the subjects is held back; the weights of the pass with the least loss on them are kept.
        """
        y_N, groups_N = self.labelled.y_N, self.labelled.group_index()
        key = random_key(self.config.seed, fold)
        held = labelled_part(rows, y_N, groups_N, self.config.inner_fraction, key & 0xFFFFFFFF)
        fitted = np.setdiff1d(rows, held)
        classes = len(set(y_N[fitted].tolist()))
        if classes < max(2, len(self.task.classes)):
            expected = {0: "numbers that differ", 2: "two classes"}.get(len(self.task.classes), "every class")
            units = f"{len(fitted)} units of {'one' if classes == 1 else classes}"
            raise ValueError(f"fold {fold}: expected {expected} beside the inner split, found {units}")
        sizes = {m: x_NF.shape[1] for m, x_NF in self.frozen.items()}
        outputs = max(1, len(self.task.classes))
        classifier = MCSPClassifier(copy.deepcopy(self.model), outputs, sizes, self.config.depth).to(self.device)
        classifier.check_protocol()
        fit_features = {m: torch.tensor(x_NF[fitted], dtype=torch.float32) for m, x_NF in self.frozen.items()}
        for modality, x_NF in fit_features.items():
            if not x_NF.isfinite().all(dim=1).any():
                raise ValueError(f"fold {fold}: expected units with {modality} to train on, found none")
        classifier.standardise_by(fit_features, self.blocks)
        optimizer = self._optimizer(classifier)
        loss_of = self._loss(fitted)
        history: list[dict[str, float]] = []
        best, kept = float("inf"), copy.deepcopy(classifier.state_dict())
        for pass_ in range(self.config.max_passes):
            train_loss = self._one_pass(classifier, optimizer, fitted, random_key(key, pass_), loss_of)
            loss = float(loss_of(self.logits(classifier, held), held))
            history.append({"pass": pass_ + 1, "loss": train_loss, "inner_loss": loss})
            if loss < best:
                best, kept = loss, copy.deepcopy(classifier.state_dict())
            elif pass_ + 1 - int(np.argmin([h["inner_loss"] for h in history])) > self.config.patience:
                break
        classifier.load_state_dict(kept)
        if self.task.kind == "number":
            _in_units_of_label(classifier, float(y_N[fitted].mean()), float(y_N[fitted].std()))
        return classifier, history

    def _loss(self, fitted: np.ndarray) -> Loss:
        """The loss of outputs ``(B, O)`` of units, with what it needs measured on the units ``fitted``."""
        y_N = self.labelled.y_N
        if self.task.kind == "number":
            standard_N = torch.tensor((y_N - y_N[fitted].mean()) / y_N[fitted].std(), dtype=torch.float32)
            return lambda out_BO, rows: F.mse_loss(out_BO[:, 0], standard_N[rows].to(out_BO.device))
        count_O = np.bincount(y_N[fitted], minlength=len(self.task.classes))
        weight_O = torch.tensor(len(fitted) / (len(count_O) * count_O), dtype=torch.float32)
        class_N = torch.tensor(y_N)
        return lambda out_BO, rows: F.cross_entropy(out_BO, class_N[rows].to(out_BO.device), weight_O.to(out_BO.device))

    def scores(self, classifier: MCSPClassifier, rows: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Scores of units as ``mcsp.evaluate.readout.task`` says, of a classifier trained on the units ``train``."""
        out_NO = self.logits(classifier, rows)
        if self.task.kind == "number":
            return with_mean(out_NO[:, 0].double().numpy(), self.labelled.y_N[train])
        if self.task.kind == "classes":
            return out_NO.softmax(dim=1).numpy()
        return (out_NO[:, 1] - out_NO[:, 0]).numpy()

    def _optimizer(self, classifier: MCSPClassifier) -> torch.optim.Optimizer:
        groups = []
        for module, rate in (
            (classifier.heads, self.config.learning_rate),
            (classifier.model, self.config.encoder_learning_rate),
        ):
            parameters = [p for p in module.parameters() if p.requires_grad]
            for matrices, decay in ((True, self.config.weight_decay), (False, 0.0)):
                chosen = [p for p in parameters if (p.ndim >= 2) == matrices]
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        return torch.optim.AdamW([group for group in groups if group["params"]])

    def _one_pass(
        self, classifier: MCSPClassifier, optimizer: torch.optim.Optimizer, rows: np.ndarray, key: int, loss_of: Loss
    ) -> float:
        classifier.train()
        order = rows[np.random.default_rng(key).permutation(len(rows))]
        total = 0.0
        for first in range(0, len(order), self.config.batch_size):
            chosen = order[first : first + self.config.batch_size]
            windows = [self._cut(self.labelled.units[i], random_key(key, int(i))) for i in chosen]
            signals = collate(windows).to(self.device).signals
            loss = loss_of(classifier(signals, len(chosen)), chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in classifier.parameters() if p.grad is not None], 1.0)
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        return total / len(order)

    def _cut(self, unit: Unit, key: int) -> list[Window]:
        """One random window of each modality of a unit, sometimes of one modality only."""
        modalities = [m for m in self.frozen if unit.of(m)]
        if (
            len(modalities) == 2
            and unit_interval(random_key(key, Purpose.DROP_MODALITY)) < self.config.modality_dropout
        ):
            modalities = [modalities[int(unit_interval(random_key(key, Purpose.WHICH_MODALITY)) * 2)]]
        windows = []
        for modality in modalities:
            recordings = unit.of(modality)
            recording = recordings[int(unit_interval(random_key(key, Purpose.WHICH_RECORDING)) * len(recordings))]
            length = longest_window(recording, self.window_seconds[modality])
            start = random_start(recording, length, unit_interval(random_key(key, Purpose.START)))
            windows.append(self.corpus.read_window(recording, start, length))
        return windows

    @torch.inference_mode()
    def logits(
        self, classifier: MCSPClassifier, rows: Sequence[int] | np.ndarray, only: Modality | None = None
    ) -> torch.Tensor:
        """Logits of units, mean over their windows, ``(len(rows), O)`` on the CPU; of all modalities, or one.

        NaN where a unit lacks the one.
        """
        classifier.eval()
        out = []
        for i in rows:
            signals: dict[Modality, Any] = {}
            for modality in self.frozen if only is None else [only]:
                windows = list(self._even_windows(self.labelled.units[i], modality))
                if windows:
                    signal = collate([[w] for w in windows]).to(self.device).signals[modality]
                    signals[modality] = signal.replace(sample_B=torch.zeros_like(signal.sample_B))
            unit_O = classifier(signals, 1)[0].float().cpu()
            out.append(unit_O if signals else torch.full_like(unit_O, float("nan")))
        return torch.stack(out)

    def remember(self, classifier: MCSPClassifier, test: np.ndarray) -> None:
        """Keep the logits of a fold's tested units by modality, on which single recordings are calibrated."""
        for modality in self.frozen:
            known = self.held_out.setdefault(
                modality, np.full((len(self.labelled.units), classifier.n_outputs), np.nan)
            )
            known[test] = self.logits(classifier, test, modality).numpy()

    def write(self, classifier: MCSPClassifier, facts: dict[str, Any]) -> None:
        """Write a classifier that was trained on all units into ``out_dir/classifier``."""
        encoder = classifier.model.eval()
        assert isinstance(encoder, PretrainedMCSP)
        features = unit_features(encoder, self.corpus, self.labelled.units, self.config, "features of the classifier")
        heads = {}
        for modality, arrays in heads_of(classifier).items():
            rows = np.flatnonzero(np.isfinite(features[modality]).all(axis=1))
            place = {unit: number for number, unit in enumerate(rows.tolist())}
            inside = [
                tuple(np.array([place[i] for i in part if i in place], dtype=int) for part in fold)
                for fold in self.folds.by_seed[0]
            ]
            heads[modality] = head_of(
                self.config, modality, arrays, features[modality][rows], self.held_out[modality][rows],
                self.labelled.part(rows), [(train, test) for train, test in inside if len(train) and len(test)],
                "windows",
            )  # fmt: skip
        what = f"fine-tuned ({self.config.depth})"
        write_folder(self.config, encoder.cpu(), self.labelled, heads, facts, what)

    def _even_windows(self, unit: Unit, modality: Modality) -> Iterator[Window]:
        for recording in unit.of(modality):
            length = longest_window(recording, self.window_seconds[modality])
            for start in window_starts(recording, length, self.config.windows_per_recording):
                yield self.corpus.read_window(recording, start, length)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune in every fold, test, and write ``results.json`` into ``config.out_dir``.

    Returns:
        The content of ``results.json``: scores of the fine-tuned model and of the frozen logistic probe on the same
        folds, their paired difference, and the numbers of trained parameters.

    Raises:
        ValueError: an unusable export or corpus, or labels from which no folds can be made; one line.
    """
    run = Finetuning(config)
    y_N, sites, task = run.labelled.y_N, run.labelled.sites, run.task
    columns = {"binary": (), "classes": (len(task.classes),), "number": (2,)}[task.kind]
    score_SN = np.full((1, len(y_N), *columns), np.nan)
    histories = []
    trained: dict[str, int] = {}
    for fold, (train, test) in enumerate(tqdm(run.folds.by_seed[0], desc=f"fine-tuning, {config.depth}", unit="fold")):
        classifier, history = run.train(train, fold)
        score_SN[0, test] = run.scores(classifier, test, train)
        if config.save_model:
            run.remember(classifier, test)
        histories.append(history)
        trained = classifier.trainable()
    weight_RN = scores.subject_weights(run.labelled.group_index())
    overlap = find_overlap(run.model.preprocessing, config.model_dir, run.corpus, run.labelled.subjects)
    unseen_N = scores.unseen_weights(run.labelled.subjects, overlap.seen)
    rows = [{"features": "fine-tuned", **task.all_scores(score_SN, y_N, sites, weight_RN, unseen_N, True)}]
    frozen = _frozen_scores(run)
    if frozen is not None:
        gain = scores.difference(score_SN, frozen, task.compared(y_N, sites, weight_RN)[task.main])
        rows.append({"features": "frozen", **task.all_scores(frozen, y_N, sites, weight_RN, unseen_N, True)})
        rows[0]["finetuned_minus_frozen"] = gain
    results = {
        "versions": versions(),
        "config": config.published(),
        "corpus_index_hash": run.corpus.index_hash,
        "classes": run.labelled.classes,
        "label": run.labelled.described(config.label),
        "units": len(y_N),
        "subjects": len(set(run.labelled.subjects)),
        "subjects_seen_in_pretraining": overlap.count,
        "overlap": overlap.text,
        "splits_sha256": run.folds.sha256,
        "parameters": trained,
        "scores": rows,
        "passes": histories,
        "notes": list(run.labelled.notes),
    }
    config.out_dir.mkdir(parents=True, exist_ok=True)
    write_whole(config.out_dir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    if config.save_model:
        classifier, _ = run.train(np.arange(len(y_N)), len(run.folds.by_seed[0]))
        run.write(classifier, {"overlap": overlap.text, "corpus_index_hash": run.corpus.index_hash})
    return results


@torch.no_grad()
def _in_units_of_label(classifier: MCSPClassifier, mean: float, sd: float) -> None:
    """Heads that gave standard scores give the number itself."""
    for head in classifier.heads.values():
        assert isinstance(head, torch.nn.Linear)
        head.weight.mul_(sd)
        head.bias.mul_(sd).add_(mean)


def _frozen_scores(run: Finetuning) -> np.ndarray | None:
    """The logistic probe, or ridge, on the frozen features in the same folds; None where a unit lacks a modality."""
    parts = [x for m, x_NF in run.frozen.items() for x in split_parts(x_NF, run.model.feature_widths(m)).values()]
    if not all(np.isfinite(x_NF).all() for x_NF in parts):
        return None
    probe = RIDGE if run.task.kind == "number" else LOGISTIC
    readout = on_grams(probe, fixed([gram(x_NF) for x_NF in parts]), run.task)
    return cross_validate(readout, run.labelled.y_N, run.folds)[0]
