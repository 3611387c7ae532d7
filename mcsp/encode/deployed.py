"""A classifier in one folder, with its encoder: ``mcsp.load_classifier(folder).predict(recording)``.

The folder holds::

    classifier.json      task (kind, label, classes), and for each modality: how recordings are encoded, calibration,
                         how good it is, threshold or interval, training sites and channels, distances of new subjects
    head.safetensors     <modality>.<name>: weight_OF, bias_O, mean_F, scale_F of the head; centre_F, spread_F of the
                         training data
    encoder/             an export, see mcsp.model.weights
    README.md            the card

Nothing here unpickles. Shape letters: F features, O outputs.
"""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mcsp.encode.extractor import FeatureExtractor
from mcsp.encode.files import modality_of, reason_of
from mcsp.encode.recording import EncodedRecording, Report
from mcsp.model.weights import SUMS_FILE, ExportedMCSP, verify_sums, write_pretrained, write_sums, write_tensors
from mcsp.output import write_whole
from mcsp.outside import read_object, sha256_file
from mcsp.schema import Modality
from mcsp.version import __version__
from mcsp.wording import listed

FORMAT_VERSION = 2
JSON_FILE, HEAD_FILE, ENCODER, CARD = "classifier.json", "head.safetensors", "encoder", "README.md"
CLASSIFICATION, REGRESSION = "classification", "regression"
UNUSUAL = 95  # percent of held-out training units that lie closer than what is called unlike the training data; ours


@dataclass(frozen=True)
class Head:
    """A linear head on the features of one modality, and what its training data were like.

    Attributes:
        arrays: ``weight_OF``, ``bias_O``, ``mean_F``, ``scale_F``: scores are ``weight ((x - mean) * scale) + bias``;
            ``centre_F``, ``spread_F``: mean and standard deviation over the training units.
        facts: JSON types: ``windows_per_recording``, ``window_seconds``, ``measured_of`` ("recording" or "windows"),
            ``calibration`` {slope, bias} of the scores, ``skill`` {measure, chance, estimate} on held-out units,
            ``sites`` {site: units}, ``simulated`` those of them that are no people, ``channels`` {site: names},
            ``distances`` (0th, 5th, ... 100th percentile of held-out units). Of classes ``threshold`` on the second of
            two (null: the largest probability). Of a number ``interval`` {coverage, half_width} of held-out errors, and
            ``range`` of the labels.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def scores(self, features_F: np.ndarray) -> np.ndarray:
        """Calibrated scores ``(O,)``: logarithms of probabilities up to a constant, or a value."""
        a, calibration = self.arrays, self.facts["calibration"]
        score_O = a["weight_OF"] @ ((features_F - a["mean_F"]) * a["scale_F"]) + a["bias_O"]
        found: np.ndarray = calibration["slope"] * score_O + np.asarray(calibration["bias"])
        return found


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one recording.

    Attributes:
        recording: its file, or what it is.
        modality: of the recording.
        label: the class, or ``""`` where there is none.
        probabilities: calibrated, by class; empty for a regression, and for a recording that is further from the
            training data than every held-out unit: there, nothing is known of how often the class is right.
        value: the number of a regression, else None.
        interval: around it, from errors of held-out training units; else None, as for probabilities.
        distance: from the training data, 1 for a typical unit of them; None where it was not encoded.
        closer: percent of held-out training units that were closer.
        flags: what a user should know before trusting it: quality, channels, unlike the training data.
        error: why there is no prediction, else ``""``.
    """

    recording: str
    modality: str = ""
    label: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    value: float | None = None
    interval: tuple[float, float] | None = None
    distance: float | None = None
    closer: float | None = None
    flags: tuple[str, ...] = ()
    error: str = ""

    def row(self) -> dict[str, Any]:
        """Cells of a table: ``class``, its ``probability``, ``p(<class>)`` of all; or ``value``, ``low``, ``high``."""
        named = ("recording", "modality", "value", "distance", "closer", "error")
        cells: dict[str, Any] = {name: getattr(self, name) for name in named}
        cells |= {"class": self.label, "probability": self.probabilities.get(self.label)}
        cells["flags"] = "; ".join(self.flags)
        cells |= {f"p({name})": p for name, p in self.probabilities.items()}
        cells |= dict(zip(("low", "high"), self.interval or (None, None), strict=True))
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in cells.items()}


class LoadedClassifier:
    """A classifier that ``mcsp finetune`` or ``mcsp evaluate`` wrote.

    Args:
        folder: ``classifier/`` in their output.
        options: of :class:`mcsp.encode.extractor.FeatureExtractor`, about the recordings: ``line_hz``, ``t_r``,
            ``parcellation`` and so on.

    Raises:
        ValueError: no such folder, or a file that is missing, damaged or of another version.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.folder = Path(folder)
        self.facts = _read_facts(self.folder)
        self.task: dict[str, Any] = self.facts["task"]
        self.classes: list[str] = self.task["classes"]
        self.heads = _read_heads(self.folder, self.facts)
        self._options = options
        self._extractors: dict[Modality, FeatureExtractor] = {}
        for modality in self.heads:
            self._try(modality)

    def predict(self, recording: Any, modality: Modality | None = None) -> Prediction:
        """What the classifier says of a file, an MNE Raw, an image or an array.

        Args:
            recording: as :class:`mcsp.encode.extractor.FeatureExtractor` takes it.
            modality: of an array.

        Raises:
            ValueError: the recording cannot be used, or is of a modality without a head.
        """
        modality = modality or modality_of(recording)
        if modality not in self.heads:
            raise ValueError(f"{_name(recording)}: the classifier knows {', '.join(self.heads)}, found {modality}")
        encoded = self._extractor(modality).encode(recording)
        return self._judged(_name(recording), modality, encoded)

    def predict_or_tell(self, recording: Any) -> Prediction:
        """As :meth:`predict`; where the recording cannot be used, ``error`` says why."""
        name, modality = _name(recording), ""
        try:
            modality = modality_of(recording)
            return self.predict(recording, modality)
        except (ValueError, OSError, MemoryError) as error:  # a recording costs itself alone
            return Prediction(name, modality, error=reason_of(error, name))

    @property
    def columns(self) -> list[str]:
        """Of the table of predictions."""
        judged = ["value", "low", "high"] if self.task["kind"] == REGRESSION else ["class", "probability"]
        judged += [f"p({name})" for name in self.classes]
        return ["recording", "modality", *judged, "distance", "closer", "flags", "error"]

    def _extractor(self, modality: Modality) -> FeatureExtractor:
        if modality not in self._extractors:
            facts = self.heads[modality].facts
            own = {name: facts[name] for name in ("windows_per_recording", "window_seconds")}
            extractor = FeatureExtractor(self.folder / ENCODER, modality, **{**own, **self._options}).fit(None)
            known, found = (len(x) for x in (self.heads[modality].arrays["mean_F"], extractor.feature_names_))
            if known != found:
                raise ValueError(f"{self.folder}: a head on {known} features, the encoder of {modality} has {found}")
            self._extractors[modality] = extractor
        return self._extractors[modality]

    def _try(self, modality: Modality) -> None:
        """Raise ``ValueError`` where a head lacks something that a prediction needs, or has it in another shape."""
        try:
            zeros_1F = np.zeros((1, len(self.heads[modality].arrays["mean_F"])))
            report = Report("", modality, (), {}, ())
            judged = self._judged("", modality, EncodedRecording(zeros_1F[0], zeros_1F, np.zeros(1), 1.0, report))
            if not np.isfinite(self.heads[modality].scores(zeros_1F[0])).all():
                raise ValueError("not all of its numbers are finite")
            json.dumps(judged.row(), allow_nan=False)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{self.folder}: the head of {modality} is not whole ({type(error).__name__}: {error}); write it again "
                "with mcsp evaluate or mcsp finetune"
            ) from None

    def _judged(self, name: str, modality: Modality, encoded: EncodedRecording) -> Prediction:
        head = self.heads[modality]
        of_windows = head.facts["measured_of"] == "windows"
        features_F = encoded.window_features.mean(axis=0) if of_windows else encoded.features
        score_O = head.scores(features_F)
        distance = distance_from(head.arrays, features_F)
        percentiles = head.facts["distances"]
        closer = float(np.interp(distance, percentiles, np.linspace(0, 100, len(percentiles))))
        far = distance > percentiles[-1]
        flags = [*_unlike(distance, percentiles), *_channels(head.facts["channels"], encoded), *encoded.report.warnings]
        flags += _chance(head.facts["skill"])
        if head.facts["simulated"]:
            flags.append(f"trained on simulated recordings: {listed(head.facts['simulated'])}")
        found = Prediction(name, modality, distance=distance, closer=closer)
        if self.task["kind"] == REGRESSION:
            value, half = float(score_O[0]), head.facts["interval"]["half_width"]
            least, largest = head.facts["range"]
            if not least <= value <= largest:
                flags.append(f"outside of the training labels, which are {least:g} to {largest:g}")
            interval = (value - half, value + half)
            return replace(found, value=value, interval=None if far else interval, flags=tuple(flags))
        p_O = np.exp(score_O - score_O.max())
        probabilities = dict(zip(self.classes, (p_O / p_O.sum()).tolist(), strict=True))
        label = chosen(probabilities, head.facts["threshold"])
        return replace(found, label=label, probabilities={} if far else probabilities, flags=tuple(flags))


def chosen(probabilities: dict[str, float], threshold: float | None) -> str:
    """The class: of two, the second from ``threshold`` on; else, or without one, the most probable."""
    names = list(probabilities)
    if threshold is not None and len(names) == 2:
        return names[int(probabilities[names[1]] >= threshold)]
    return max(names, key=lambda name: probabilities[name])


def distance_from(arrays: dict[str, np.ndarray], features_F: np.ndarray) -> float:
    """Root mean square of the features that vary, in standard deviations of the training units."""
    spread_F = arrays["spread_F"]
    varying = spread_F > 0
    z_F = (features_F[varying] - arrays["centre_F"][varying]) / spread_F[varying]
    return float(np.sqrt((z_F**2).mean())) if len(z_F) else 0.0


def write_classifier(
    folder: Path,
    model: ExportedMCSP,
    heads: dict[Modality, Head],
    task: dict[str, Any],
    facts: dict[str, Any],
    card: str,
) -> None:
    """Write the folder; what was there of an earlier classifier is replaced.

    Args:
        folder: it may exist.
        model: the encoder, with its ``preprocessing``.
        heads: of at least one modality.
        task: ``kind`` ("classification" or "regression"), ``label``, ``classes``, of which the scores are in order.
        facts: anything else worth keeping, JSON types.
        card: text of README.md.
    """
    write_pretrained(model, folder / ENCODER, model.preprocessing)
    arrays = {
        f"{modality}.{name}": np.ascontiguousarray(array, dtype=np.float64)
        for modality, head in heads.items()
        for name, array in head.arrays.items()
    }
    write_tensors(folder / HEAD_FILE, partial(save_file, arrays))
    described = {
        "format_version": FORMAT_VERSION,
        "mcsp_version": __version__,
        "task": task,
        "encoder": {"folder": ENCODER, "sha256": sha256_file(folder / ENCODER / SUMS_FILE)},
        "heads": {modality: head.facts for modality, head in heads.items()},
        **facts,
    }
    write_whole(folder / JSON_FILE, json.dumps(described, indent=2, allow_nan=False) + "\n")
    write_whole(folder / CARD, card)
    write_sums(folder)


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / JSON_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: expected a classifier, a folder with {JSON_FILE}; found none")
    try:
        facts = read_object(path)
        version, kind = facts["format_version"], facts["task"]["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the description of a classifier ({type(error).__name__}: {error})") from None
    if version != FORMAT_VERSION or kind not in (CLASSIFICATION, REGRESSION):
        raise ValueError(
            f"{path}: expected format_version {FORMAT_VERSION}, found {version} of a {kind}; write it again with mcsp "
            "evaluate or mcsp finetune"
        )
    sums = folder / ENCODER / SUMS_FILE
    if not sums.is_file() or sha256_file(sums) != facts["encoder"]["sha256"]:
        raise ValueError(f"{sums.parent}: expected the encoder that the head was trained on, found another or none")
    return facts


def _read_heads(folder: Path, facts: dict[str, Any]) -> dict[Modality, Head]:
    path = folder / HEAD_FILE
    verify_sums(folder, (JSON_FILE, HEAD_FILE))
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from None
    heads: dict[Modality, Head] = {}
    for modality, of_head in facts["heads"].items():
        own = {name.partition(".")[2]: x for name, x in arrays.items() if name.startswith(f"{modality}.")}
        heads[modality] = Head(own, of_head)
    return heads


def _name(recording: Any) -> str:
    return str(recording) if isinstance(recording, str | Path) else type(recording).__name__


def _unlike(distance: float, percentiles: list[float]) -> list[str]:
    limit = float(np.interp(UNUSUAL, np.linspace(0, 100, len(percentiles)), percentiles))
    found = f"distance {distance:.2f}, {UNUSUAL} % of new subjects there are below {limit:.2f}"
    if distance > percentiles[-1]:
        found += f" and all below {percentiles[-1]:.2f}: how sure it is cannot be known"
    return [f"unlike the training data: {found}"] if distance > limit else []


def skill_in_words(skill: dict[str, Any]) -> str:
    """How good a head is on held-out units, with the 95 % interval over subjects."""
    found = skill["estimate"]
    if found is None:
        return f"{skill['measure']} unknown"
    return f"{skill['measure']} {found['value']:.2f} ({found['ci_low']:.2f} to {found['ci_high']:.2f})"


def _chance(skill: dict[str, Any]) -> list[str]:
    if skill["estimate"] is not None and skill["estimate"]["ci_low"] > skill["chance"]:
        return []
    return [f"not shown to be better than chance: {skill_in_words(skill)} on held-out units"]


def _channels(trained: dict[str, list[str]], encoded: EncodedRecording) -> list[str]:
    """What is missing of the channels of the training site that is most like the recording."""
    used = {status.channel.lower() for status in encoded.report.channels if status.used}
    missing = {site: [n for n in names if n.lower() not in used] for site, names in trained.items() if names}
    if not missing:
        return []
    site = min(missing, key=lambda site: len(missing[site]) / len(trained[site]))
    if not missing[site]:
        return []
    return [f"{len(missing[site])} of {len(trained[site])} channels of {site} are missing: {listed(missing[site])}"]
