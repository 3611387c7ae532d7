"""Which channels of a file are EEG, what they are called, and where they are.

Positions are millimetres in the head frame of MNE: x to the right ear, y to the nasion, z up, the origin between the
ears. Shape letter: C channels.
"""

import re
from functools import lru_cache

import mne
import numpy as np

from mcsp.data_sharding.bids.find import RecordingRef, read_json, read_tsv
from mcsp.data_sharding.bids.reasons import RecordingError

# Old and new names of one place in the 10-20 system.
_ALIASES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8", "a1": "M1", "a2": "M2"}
_OTHER_CHANNEL = re.compile(r"e[ck]g|eog|emg|resp|status|trig|stim|marker|event|annot|acc|gyro|photic|pulse|spo2", re.I)
# BioSemi's caps call their electrodes A1 to A32, B1 to B32 and so on. Some are names of the 10-05 system as well (A1,
# C3) and mean other places there. The first pattern has all of them, the second those that the 10-05 system lacks.
_BIOSEMI = re.compile(r"[A-H]([1-9]|[12]\d|3[0-2])", re.IGNORECASE)
_BIOSEMI_ALONE = re.compile(r"A([3-9]|[12]\d|3[0-2])|B([1-9]|[12]\d|3[0-2])", re.IGNORECASE)
# Metres, centimetres, millimetres of coordsystem.json.
_MM_PER_UNIT = {"m": 1000.0, "cm": 10.0, "mm": 1.0}
# Frames of coordsystem.json with their origin between the ears; rows give x, y, z of the head frame.
_TO_HEAD = {
    "captrak": np.eye(3),
    "ctf": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "eeglab": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}

# Distance from the origin [mm] of an electrode on any head, children's included. Ours.
_RADII_MM = (40.0, 200.0)


def normalise_channel(name: str) -> str:
    """``EEG FP1-REF`` -> ``Fp1``, ``C3-M2`` -> ``C3``, ``T3`` -> ``T7``; other names only lose the decoration."""
    bare = re.sub(r"^(EEG|POL)[\s_-]*", "", name.strip(), flags=re.IGNORECASE).rstrip(".")
    bare = re.sub(r"[\s_-]+(REF\d?|LE|AR|AVG|AVERAGE|A1|A2|M1|M2)$", "", bare, flags=re.IGNORECASE).strip()
    bare = bare or name.strip()
    standard = standard_positions_mm().get(bare.lower())
    return _ALIASES.get(bare.lower(), standard[0] if standard else bare)


def normalise_channels(names: list[str]) -> list[str]:
    """:func:`normalise_channel` of each; where two would get one name, the later keeps that of the file."""
    channels: list[str] = []
    biosemi = biosemi_names(names)
    for name in names:
        normal = name if name in biosemi else normalise_channel(name)
        channels.append(name if normal in channels else normal)
    return channels


def biosemi_names(names: list[str]) -> set[str]:
    """Those that are BioSemi's and no names of the 10-05 system; none unless the file as a whole is named like that."""
    alone = sum(bool(_BIOSEMI_ALONE.fullmatch(name.strip())) for name in names)
    if alone <= len(names) / 8:  # the caps of 32 to 256 electrodes have a quarter and more
        return set()
    return {name for name in names if _BIOSEMI.fullmatch(name.strip())}


def why_no_position(names: list[str]) -> str:
    """One line on channels of which none has a position; differences of two electrodes (``Fp1-F7``) are called so."""
    listed = f"no position for {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
    if all("-" in name and all(normalise_channel(part).lower() in standard_positions_mm() for part in name.split("-"))
           for name in names):  # fmt: skip
        return f"{listed}: differences between electrodes; expected each channel against one reference"
    return f"{listed}; expected 10-05 names or electrodes.tsv"


@lru_cache(maxsize=1)
def standard_positions_mm() -> dict[str, tuple[str, np.ndarray]]:
    """Lower-case 10-05 name -> (name, position [mm, head frame]) of MNE's standard_1005 template (Colin27)."""
    # MNE 1.13 gave the template another name; older versions know only the old one.
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    montage = mne.channels.transform_to_head(mne.channels.make_standard_montage(name))
    return {k.lower(): (k, np.round(xyz * 1e3, 3)) for k, xyz in montage.get_positions()["ch_pos"].items()}


def electrode_positions_mm(
    raw: mne.io.BaseRaw, ref: RecordingRef, names: list[str], channels: list[str], own_first: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Positions [mm, head frame], float64 ``(C, 3)``, NaN where unknown, and where each is from.

    The sources are ``electrodes.tsv``, else the ``10-05`` template, else the ``file`` itself (before the template where
    ``own_first``, because many files hold the places of some other template), else ``""``. ``names`` are those of the
    file, ``channels`` the normalised ones. A table of electrodes counts only where its ``coordsystem.json`` gives a
    unit and a frame whose origin lies between the ears (CapTrak, CTF, EEGLAB).
    """
    measured = _measured_positions_mm(ref)
    own = _own_positions_mm(raw)
    positions, sources = [], []
    biosemi = biosemi_names(names)
    for name, channel in zip(names, channels, strict=True):
        standard = None if name in biosemi else standard_positions_mm().get(channel.lower())
        if name in measured:
            found = measured[name], "electrodes.tsv"
        elif own_first and name in own:
            found = own[name], "file"
        elif standard is not None:
            found = standard[1], "10-05"
        else:
            found = own.get(name, np.full(3, np.nan)), "file" if name in own else ""
        positions.append(found[0])
        sources.append(found[1])
    return np.array(positions), sources


def _own_positions_mm(raw: mne.io.BaseRaw) -> dict[str, np.ndarray]:
    """What the file, or a montage that was set, says: only places that a head can have, in the head frame."""
    montage = raw.get_montage()
    found = montage.get_positions() if montage is not None else {}
    if found.get("coord_frame") != "head":
        return {}
    positions = {name: np.asarray(xyz) * 1e3 for name, xyz in found["ch_pos"].items()}
    return {name: xyz for name, xyz in positions.items() if _RADII_MM[0] <= np.linalg.norm(xyz) <= _RADII_MM[1]}


def _measured_positions_mm(ref: RecordingRef) -> dict[str, np.ndarray]:
    table, coordsystem = ref.companion("electrodes.tsv"), ref.companion("coordsystem.json")
    measured: dict[str, np.ndarray] = {}
    if table is not None and coordsystem is not None:
        system = read_json(coordsystem)
        rotation = _TO_HEAD.get(str(system.get("EEGCoordinateSystem", "")).lower())
        scale = _MM_PER_UNIT.get(str(system.get("EEGCoordinateUnits", "")))
        if rotation is not None and scale is not None:
            for row in read_tsv(table):
                if {"name", "x", "y", "z"} <= set(row):
                    measured[row["name"]] = rotation @ np.array([float(row[axis]) for axis in "xyz"]) * scale
    return measured


def eeg_channels(
    raw: mne.io.BaseRaw, ref: RecordingRef, repairs: list[str]
) -> tuple[list[str], set[str], dict[str, str]]:
    """Names of the EEG channels in the file's order, those that ``channels.tsv`` or the file calls bad, and all others.

    Of the others, the third result, each has the reason.

    Raises:
        RecordingError: no EEG channel, or a table most of whose rows name no channel of the file.
    """
    table = ref.companion("channels.tsv")
    listed = [row for row in read_tsv(table) if "name" in row] if table else []
    named = {row["name"].strip(): row for row in listed}
    absent = sorted(set(named) - {name.strip() for name in raw.ch_names})
    if table is not None and len(absent) > len(named) / 2:
        detail = f"{table.name}: {len(absent)} of {len(named)} rows, such as {absent[0]!r}, name no channel of the file"
        raise RecordingError("channels-mismatch", f"{detail}, expected its {len(raw.ch_names)} channels")
    if table is not None and absent:
        repairs.append(f"{table.name}: rows without a channel in the file are ignored: {', '.join(absent)}")
    names: list[str] = []
    others: dict[str, str] = {}
    for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True):
        row = named.get(name.strip(), {})
        is_eeg = row["type"].upper() == "EEG" if "type" in row else kind == "eeg" and not _OTHER_CHANNEL.search(name)
        if is_eeg:
            names.append(name)
        elif "type" in row:
            others[name] = f"type {row['type']} in channels.tsv"
        else:
            others[name] = f"type {kind}" if kind != "eeg" else "named like another kind of channel"
    if not names:
        raise RecordingError("no-channels", f"none of {len(raw.ch_names)} channels is EEG")
    bad = {name for name, row in named.items() if row.get("status", "").lower() == "bad"} | set(raw.info["bads"])
    return names, {name for name in names if name.strip() in bad or name in bad}, others
