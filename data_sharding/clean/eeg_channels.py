"""Types, names and positions of the channels of an EEG file.

Positions are millimetres in the head frame of MNE: x to the right ear, y to the nasion, z up, the origin between the
ears. Shape letter: C channels.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mne
import numpy as np

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, parse_name
from mcsp.data_sharding.bids.tables import read_columns, read_json
from mcsp.data_sharding.clean.eeg_frames import (
    MM_PER_UNIT,
    RADII_MM,
    TO_HEAD,
    around_head,
    by_landmarks,
    electrodes_mm,
    nose_of_set,
    on_sphere,
)
from mcsp.wording import listed

# Old and new names of one place in the 10-20 system.
_ALIASES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8", "a1": "M1", "a2": "M2"}
_OTHER_CHANNEL = re.compile(r"e[ck]g|eog|emg|resp|status|trig|stim|marker|event|annot|acc|gyro|photic|pulse|spo2", re.I)
# BioSemi's caps call their electrodes A1 to A32, B1 to B32 and so on. Some are names of the 10-05 system as well (A1,
# C3) and mean other places there. The first pattern has all of them, the second those that the 10-05 system lacks.
_BIOSEMI = re.compile(r"[A-H]([1-9]|[12]\d|3[0-2])", re.IGNORECASE)
_BIOSEMI_ALONE = re.compile(r"A([3-9]|[12]\d|3[0-2])|B([1-9]|[12]\d|3[0-2])", re.IGNORECASE)
# Fewer electrodes with a place say too little of a montage, unless the file holds no others. Ours, as in encode_raw.
_MIN_PLACED = 4
# Ears and mastoids, to which other channels are referenced.
_EARS = ("a1", "a2", "m1", "m2")
_AGAINST_EAR = re.compile(rf"[\s_-]+({'|'.join(_EARS)})$", re.IGNORECASE)
_MAX_AGAINST_ANOTHER = 0.25  # of the channels: that many are marked bad, with more the recording is refused. Ours.
_REFERENCE = r"[\s_-]+(REF\d?|LE|AR|AVG|AVERAGE)$"
_UNIT = r"\s*[(\[][\w\u00b5\u03bc]*V[)\]]$"
# Electrodes of the template that are nearer than this to their measured places [cosine of the angle at the centre of
# the head, on average] lie in the frame that coordsystem.json says: real heads have 0.95, exchanged axes 0.5. Ours.
_MIN_COSINE = 0.75
# How far [mm] all of them together may lie from there: heads that were digitised 6, templates with their ears 21, and
# a sphere about its own centre, which no frame of BIDS has as its origin, 34 and more. Ours.
_MAX_SHIFT_MM = 30.0
NO_POSITION = "no position"


@dataclass(frozen=True)
class EegChannels:
    """The EEG channels of a file that have a place, in its order."""

    names: list[str]  # in the file
    channels: list[str]  # as they are called here
    positions_C3: np.ndarray  # mm, head frame, float64
    position_from: list[str]  # electrodes.tsv, 10-05 or file
    marked_bad: set[str]  # those of names that the file or channels.tsv calls bad
    units: dict[str, str]  # those of names whose unit channels.tsv gives
    sfreq: float | None  # Hz, where channels.tsv gives all of them one
    others: dict[str, str]  # channels that are left out -> why


def normalise_channel(name: str) -> str:
    """``EEG FP1-REF`` -> ``Fp1``, ``C3-M2`` -> ``C3``, ``T3`` -> ``T7``; other names only lose the decoration."""
    bare = re.sub(r"^(EEG|POL)[\s_:-]*", "", name.strip(), flags=re.IGNORECASE).rstrip(".")
    bare = re.sub(_UNIT, "", bare)
    bare = re.sub(_REFERENCE, "", bare, flags=re.IGNORECASE).strip()
    against_ear = _AGAINST_EAR.sub("", bare).strip()
    if against_ear.lower() not in _EARS:  # A2-A1 is no place, but the difference of two
        bare = against_ear
    bare = bare or name.strip()
    standard = standard_positions_mm().get(bare.lower())
    return _ALIASES.get(bare.lower(), standard[0] if standard else bare)


def normalise_channels(names: list[str]) -> list[str]:
    """:func:`normalise_channel` of each; where two would get one name, the later keeps that of the file."""
    channels: list[str] = []
    biosemi, shared = biosemi_names(names), shared_reference(names)
    for name in names:
        normal = name if name in biosemi else normalise_channel(name.removesuffix(shared))
        own = name if name not in channels else f"{name}-2"  # T7 beside T3, which has taken its name
        channels.append(own if normal in channels else normal)
    return channels


def shared_reference(names: Iterable[str]) -> str:
    """``-Cz`` where many names end so: electrodes against one, and no pairs of neighbours; else empty."""
    ends = Counter(match[0] for name in names if (match := re.search(r"\s*-\s*[A-Za-z]\w*$", name)))
    end, count = max(ends.items(), key=lambda item: item[1], default=("", 0))
    return end if count >= _MIN_PLACED else ""


def biosemi_names(names: list[str]) -> set[str]:
    """Those that are BioSemi's and no names of the 10-05 system; none unless the file as a whole is named like that."""
    alone = sum(bool(_BIOSEMI_ALONE.fullmatch(name.strip())) for name in names)
    if alone <= len(names) / 8:  # the caps of 32 to 256 electrodes have a quarter and more
        return set()
    return {name for name in names if _BIOSEMI.fullmatch(name.strip())}


def _why_no_position(unplaced: list[str], placed: list[str], doubts: list[str]) -> str:
    """One line on channels of which too few have a place; differences of two electrodes (``Fp1-F7``) are called so."""
    listed = f"no position for {', '.join(unplaced[:4])}{' ...' if len(unplaced) > 4 else ''}"
    if placed:
        n = len(placed) + len(unplaced)
        listed = f"{len(placed)} of {n} EEG channels have a position ({', '.join(placed)}), expected at least "
        listed += f"{_MIN_PLACED}: {', '.join(unplaced[:4])}{' ...' if len(unplaced) > 4 else ''} have none"
    if sum(map(_is_difference, unplaced)) > len(unplaced) / 2:
        return f"{listed}: differences between electrodes; expected each channel against one reference"
    return "; ".join([f"{listed}; expected 10-05 names or electrodes.tsv", *doubts])


def _is_difference(name: str) -> bool:
    parts = re.sub(r"-\d+$", "", name).split("-")  # as MNE counts channels of one name
    return len(parts) == 2 and all(normalise_channel(part).lower() in standard_positions_mm() for part in parts)


@lru_cache(maxsize=1)
def standard_positions_mm() -> dict[str, tuple[str, np.ndarray]]:
    """Lower-case 10-05 name -> (name, position [mm, head frame]) of MNE's standard_1005 template (Colin27)."""
    # MNE 1.13 gave the template another name; older versions know only the old one.
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    montage = mne.channels.transform_to_head(mne.channels.make_standard_montage(name))
    return {k.lower(): (k, np.round(xyz * 1e3, 3)) for k, xyz in montage.get_positions()["ch_pos"].items()}


class _Names:
    """Names of a table, found by those of a file: as they are, else by how they are normalised (FP1 is Fp1)."""

    def __init__(self, names: Iterable[str], of_file: Iterable[str]) -> None:
        self._shared = shared_reference(of_file)
        self._exact = {name.strip(): name for name in names}
        self._alike: dict[str, list[str]] = {}
        for stripped, name in self._exact.items():
            self._alike.setdefault(self._normal(stripped), []).append(name)

    def _normal(self, name: str) -> str:
        return normalise_channel(name.removesuffix(self._shared)).lower()

    def find(self, name: str) -> str | None:
        """The table's name for a channel of the file; None where it has none, or several that are alike."""
        if name.strip() in self._exact:
            return self._exact[name.strip()]
        alike = self._alike.get(self._normal(name), [])
        return alike[0] if len(alike) == 1 else None


def _positions_mm(
    own: dict[str, np.ndarray], measured: dict[str, np.ndarray], names: list[str], channels: list[str], own_first: bool
) -> tuple[np.ndarray, list[str]]:
    """Positions [mm, head frame], float64 ``(C, 3)``, NaN where unknown, and where each is from.

    The sources are ``measured`` places, else the ``10-05`` template, else the ``file`` itself (before the template
    where ``own_first``, because many files hold the places of some other template), else ``""``. ``names`` are those
    of the file, ``channels`` the normalised ones.
    """
    of_table = _Names(measured, names)
    positions, sources = [], []
    biosemi = biosemi_names(names)
    for name, channel in zip(names, channels, strict=True):
        standard = None if name in biosemi else standard_positions_mm().get(channel.lower())
        if (row := of_table.find(name)) is not None:
            found = measured[row], "electrodes.tsv"
        elif own_first and name in own:
            found = own[name], "file"
        elif standard is not None:
            found = standard[1], "10-05"
        else:
            found = own.get(name, np.full(3, np.nan)), "file" if name in own else ""
        positions.append(found[0])
        sources.append(found[1])
    return np.array(positions), sources


def _own_positions_mm(raw: mne.io.BaseRaw, file: Path, doubts: list[str]) -> dict[str, np.ndarray]:
    """What the file, or a montage that was set, says: only places that a head can have, in the head frame.

    What EEGLAB says of the nose counts, and a template's sphere is laid around the head: MNE takes the axes and the
    origin of both for those of the head frame.
    """
    montage = raw.get_montage()
    found = montage.get_positions() if montage is not None else {}
    if found.get("coord_frame") != "head":
        return {}
    positions = {name: np.asarray(xyz) * 1e3 for name, xyz in found["ch_pos"].items()}
    positions = {name: xyz for name, xyz in positions.items() if RADII_MM[0] <= np.linalg.norm(xyz) <= RADII_MM[1]}
    if positions and file.suffix.lower() == ".set" and file.is_file():
        rotation = nose_of_set(file)
        positions = {name: rotation @ xyz for name, xyz in positions.items()}
    if on_sphere(positions):
        positions = around_head(positions)
        doubts.append(f"{file.name}: its electrodes lie on a sphere about its centre, which is laid around the head")
    if doubt := _misplaced(positions):
        doubts.append(f"{file.name}: its places are not used: its electrodes {doubt}")
        return {}
    return positions


def _measured_positions_mm(ref: RecordingRef, repairs: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Places [mm, head frame] by the closest ``electrodes.tsv`` that is understood; where none is, why not.

    A table counts only where the ``coordsystem.json`` of its space gives a unit, and landmarks or a frame whose origin
    lies between the ears (CapTrak, CTF, EEGLAB). Landmarks come before the name of the frame.
    """
    doubts: list[str] = []
    systems = ref.companions.get("coordsystem.json", ())
    for table in reversed(ref.companions.get("electrodes.tsv", ())):
        space = parse_name(table.name)[0].get("space")
        beside = [file for file in systems if parse_name(file.name)[0].get("space") == space]
        if not beside and len(systems) == 1:
            beside = list(systems)
        if not beside:
            doubts.append(f"{table.name} is not used: there is no coordsystem.json of its space")
            continue
        system = read_json(beside[-1])
        frame, unit = (str(system.get(f"EEGCoordinate{what}", "")) for what in ("System", "Units"))
        rotation, scale = TO_HEAD.get(frame.strip().lower()), MM_PER_UNIT.get(unit.strip().lower())
        to_head = by_landmarks(system)
        if to_head is None and rotation is not None:
            to_head = np.eye(4)
            to_head[:3, :3] = rotation
        if to_head is not None and scale is not None:
            places = electrodes_mm(table, to_head, scale, beside[-1].name, repairs)
            if not (doubt := _misplaced(places)):
                return places, []
            found = f"its electrodes {doubt} in the frame {frame!r} that {beside[-1].name} says"
            doubts.append(f"{table.name} is not used: {found}, expected axes and origin of it")
            continue
        what = [f"EEGCoordinateSystem {frame!r}, expected CapTrak, CTF or EEGLAB"] if rotation is None else []
        what += [f"EEGCoordinateUnits {unit!r}, expected m, cm or mm"] if scale is None else []
        doubts.append(f"{table.name} is not used: {beside[-1].name} says {' and '.join(what)}")
    return {}, doubts


def _misplaced(places: dict[str, np.ndarray]) -> str:
    """What is wrong with measured places [mm] by those that electrodes of such names have; empty where nothing is.

    Heads of any size are compared; where fewer than four names are known, only a sphere is seen.
    """
    biosemi, shared = biosemi_names(list(places)), shared_reference(places)
    pairs = [
        (xyz, standard_positions_mm()[normal][1])
        for name, xyz in places.items()
        if name not in biosemi
        and (normal := normalise_channel(name.removesuffix(shared)).lower()) in standard_positions_mm()
        and np.linalg.norm(xyz)
    ]
    if len(pairs) < _MIN_PLACED:
        return "lie on a sphere about its centre" if on_sphere(places) else ""
    found, usual = (np.array(side) for side in zip(*pairs, strict=True))
    radii = [np.linalg.norm(side, axis=1) for side in (found, usual)]
    if (cosine := float(((found * usual).sum(axis=1) / radii[0] / radii[1]).mean())) < _MIN_COSINE:
        return f"do not lie where their names do (mean cosine {cosine:.2f})"
    shift = float(np.linalg.norm((found * np.median(radii[1]) / np.median(radii[0]) - usual).mean(axis=0)))
    return f"lie {shift:.0f} mm away from where their names do" if shift > _MAX_SHIFT_MM else ""


def eeg_channels(
    raw: mne.io.BaseRaw, ref: RecordingRef, repairs: list[str], own_positions_first: bool = False
) -> EegChannels:
    """The EEG channels of a file that have a place.

    EEG is what ``channels.tsv`` says, else what the reader takes for it unless its name is that of another kind. A
    channel without a place has no use for a model and, as it may be anything, no part in an average reference.

    Raises:
        RecordingError: no EEG channel, too few with a place, a table most of whose rows name no channel of the file, or
            places that no head has.
    """
    rows = _channel_rows(raw, ref, repairs)
    names: list[str] = []
    others: dict[str, str] = {}
    for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True):
        row: dict[str, str] = rows.get(name, {})
        is_eeg = row["type"].upper() == "EEG" if "type" in row else kind == "eeg" and not _OTHER_CHANNEL.search(name)
        if is_eeg:
            names.append(name)
        elif "type" in row:
            others[name] = f"type {row['type']} in channels.tsv"
        else:
            others[name] = f"type {kind}" if kind != "eeg" else "named like another kind of channel"
    if not names:
        found = f"{next(iter(others))} is of {next(iter(others.values()))}" if others else "the file holds none"
        raise RecordingError("no-channels", f"none of {len(raw.ch_names)} channels is EEG: {found}")
    channels = normalise_channels(names)
    measured, doubts = _measured_positions_mm(ref, repairs)
    positions_C3, sources = _positions_mm({}, measured, names, channels, own_positions_first)
    if own_positions_first or "" in sources:
        own = _own_positions_mm(raw, ref.path, doubts)
        positions_C3, sources = _positions_mm(own, measured, names, channels, own_positions_first)
    placed = [c for c, source in enumerate(sources) if source]
    unplaced = [name for name, source in zip(names, sources, strict=True) if not source]
    if len(placed) < min(_MIN_PLACED, len(names)) or not placed:
        raise RecordingError("unknown-montage", _why_no_position(unplaced, [names[c] for c in placed], doubts))
    repairs += doubts
    if unplaced:
        listed = f"{', '.join(unplaced[:4])}{' ...' if len(unplaced) > 4 else ''}"
        repairs.append(f"{ref.path.name}: {len(unplaced)} EEG channels without a position are left out: {listed}")
    bad = {name for name, row in rows.items() if row.get("status", "").lower() == "bad"} | set(raw.info["bads"])
    chosen = [names[c] for c in placed]
    bad |= _against_another(ref.path.name, chosen, rows, repairs)
    return EegChannels(
        names=chosen,
        channels=[channels[c] for c in placed],
        positions_C3=positions_C3[placed],
        position_from=[sources[c] for c in placed],
        marked_bad=bad & set(chosen),
        units={name: rows[name]["units"] for name in chosen if "units" in rows.get(name, {})},
        sfreq=_one_rate([rows.get(name, {}).get("sampling_frequency", "") for name in chosen]),
        others=others | dict.fromkeys(unplaced, NO_POSITION),
    )


def _against_another(file: str, names: list[str], rows: dict[str, dict[str, str]], repairs: list[str]) -> set[str]:
    """Channels against another reference than most, by ``reference`` in channels.tsv or an ear in the name.

    Their average reference would hold the difference of both, as left ears and right ones have it.

    Raises:
        RecordingError: unknown-montage, where these are more than a quarter.
    """
    against: dict[str, list[str]] = {}
    for name in names:
        ear = _AGAINST_EAR.search(re.sub(_UNIT, "", name.strip()))
        stated = rows.get(name, {}).get("reference", "").strip().lower()
        reference = ear[1].lower() if ear else "" if stated in ("", "n/a") else stated
        against.setdefault(_ALIASES.get(reference, reference).upper(), []).append(name)
    if len(known := {r: of for r, of in against.items() if r}) < 2:
        return set()
    most = max(known, key=lambda reference: len(known[reference]))
    others = [name for reference, of in known.items() if reference != most for name in of]
    told = f"{file}: {listed(others)} against {listed(sorted(known.keys() - {most}))}, others against {most}"
    if len(others) > _MAX_AGAINST_ANOTHER * len(names):
        raise RecordingError("unknown-montage", f"{told}; expected each channel against one reference")
    repairs.append(f"{told}: marked bad")
    return set(others)


def _one_rate(cells: list[str]) -> float | None:
    try:
        (rate,) = {float(cell) for cell in cells}
    except ValueError:
        return None
    return rate if rate > 0 else None


def _channel_rows(raw: mne.io.BaseRaw, ref: RecordingRef, repairs: list[str]) -> dict[str, dict[str, str]]:
    """Rows of ``channels.tsv`` by the file's names of the channels; none where there is no table."""
    table = ref.companion("channels.tsv")
    if table is None:
        return {}
    named: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_columns(table, ("name",), repairs), 1):
        name = row.get("name", "")
        known = named.get(name, row)
        if differ := [key for key in ("type", "status", "units") if known.get(key) != row.get(key)]:
            found = " and ".join(repr(r.get(differ[0], "n/a")) for r in (known, row))
            raise RecordingError("bad-table", f"{table.name}: row {number}: {name!r} twice, {differ[0]} {found}")
        if row.get("status", "good").lower() not in ("good", "bad"):
            raise RecordingError(
                "bad-table", f"{table.name}: row {number}, column status: {row['status'][:40]!r}, expected good or bad"
            )
        if name:
            named[name] = row
    of_name = _Names(list(named), raw.ch_names)
    found_in = {name: key for name in raw.ch_names if (key := of_name.find(name)) is not None}
    absent = sorted(set(named) - set(found_in.values()))
    if len(absent) > len(named) / 2:
        detail = f"{table.name}: {len(absent)} of {len(named)} rows, such as {absent[0]!r}, name no channel of the file"
        raise RecordingError("channels-mismatch", f"{detail}, expected its {len(raw.ch_names)} channels")
    if absent:
        repairs.append(f"{table.name}: rows without a channel in the file are ignored: {', '.join(absent)}")
    return {name: named[key] for name, key in found_in.items()}
