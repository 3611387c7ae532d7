"""Definition of a recording, a sample and a corpus, for all parts of MCSP.

The corpus (see ``docs/corpus-format.md``) is a folder::

    index.json            schema version, resolved config, software versions, shards, totals, rejections
    recordings.arrow    one row per recording: the fields of :class:`Recording`
    shards/<split>-<number>.tar        members <key>.<modality>-<n>.npy and <key>.json
    shards/<split>-<number>.crc.npy    one CRC-32 (uint32) per block of each recording

Shape letters: T time samples, C channels.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 2
# What a site may be called: its name is a part of keys, files and reports.
SITE_NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
# Where index.json and an export say under which key subjects were hashed: only equal fingerprints are compared.
KEY_FINGERPRINT = "subject_key_fingerprint"
# Environment variable with the secret of these hashes.
KEY_VARIABLE = "MCSP_SUBJECT_KEY"

Modality = Literal["fmri", "eeg"]
Domain = Literal["spatial", "temporal", "spectral"]
Split = Literal["train", "validation", "test"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
DOMAINS: tuple[Domain, ...] = get_args(Domain)
SPLITS: tuple[Split, ...] = get_args(Split)
VIEWS = (0, 1)  # of each window, in every domain

# Highest frequency [Hz] that models read. EEG: the range of the classical bands, to 45 Hz; BOLD: slow-5 to slow-2 (Zuo
# et al., NeuroImage 2010).
HIGHEST_HZ: dict[Modality, float] = {"eeg": 45.0, "fmri": 0.25}
# Times the median absolute deviation: the standard deviation of a normal distribution.
MAD_TO_SD = 1.4826
# Ellipsoid around the cerebrum of the MNI152 template [mm].
BRAIN_CENTRE_MM, BRAIN_HALF_AXES_MM = (0.0, -18.0, 16.0), (66.0, 82.0, 56.0)

# Units in which values reach a model. fp16 holds 6e-8..65504, so volts would drown in its subnormals.
UNITS: dict[Modality, str] = {"eeg": "uV", "fmri": "percent"}
# Unit of BOLD that came without its mean, as denoised series do: each recording is divided by its own robust amplitude,
# so amplitude carries no meaning and is never compared between recordings.
SCALE_FREE = "a.u."


def units_of(modality: Modality) -> tuple[str, ...]:
    """Every unit that recordings of a modality may have."""
    return (UNITS[modality], SCALE_FREE) if modality == "fmri" else (UNITS[modality],)


# Length of one CRC block in samples of time: 2 s of EEG at 200 Hz, 10 volumes of BOLD. A window is checked in whole
# blocks, so a block is short beside a window, yet holds the 4 kB or more that CRC-32 is fast on.
BLOCK_SAMPLES: dict[Modality, int] = {"eeg": 400, "fmri": 10}


def block_bounds(n_samples: int, block_samples: int) -> list[int]:
    """First time sample of each CRC block, and the end."""
    return [*range(0, n_samples, block_samples), n_samples]


def crc_name(shard: str) -> str:
    """File name of the block checksums of a shard: ``train-00000.tar`` -> ``train-00000.crc.npy``."""
    return shard.removesuffix(".tar") + ".crc.npy"


@dataclass(frozen=True)
class Recording:
    """One stored recording: a row of ``recordings.arrow``.

    The array lies time-major ``(n_samples, n_channels)``, C-contiguous, little-endian, without compression
    at ``byte_offset`` of the shard, so that a window is one contiguous byte range. A physical value is
    ``stored * scale`` in ``unit``.
    """

    key: str  # sample key, "<site>_<subject>[_<session>]", unique in the corpus
    shard: str  # file name below shards/
    member: str  # tar member name, "<key>.<modality>-<n>.npy"
    modality: Modality
    site: str
    subject: str  # keyed hash, never the original id
    session: str  # "" where the site has none
    task: str  # "" where unknown
    run: str  # "" where unknown
    split: Split
    sfreq: float  # Hz; 1 / t_r for fMRI
    unit: str  # "uV" | "percent" | "a.u."
    scale: float  # physical = stored * scale
    n_samples: int
    n_channels: int
    dtype: str  # numpy name, "float16"
    byte_offset: int  # of the first array element, from the start of the tar
    crc_offset: int  # index of this recording's first block in the shard's .crc.npy
    block_samples: int  # time samples per CRC block; the last block may be shorter
    simulated: bool
    onset_seconds: float  # start on the clock shared by the sample's recordings; NaN if there is none
    channels: list[str] = field(default_factory=list)  # names, length C
    positions_mm: list[float] = field(default_factory=list)  # x, y, z of each channel, length 3C, NaN if unknown
    channel_good: list[bool] = field(default_factory=list)  # length C
    valid_spans: list[int] = field(default_factory=list)  # start, stop, start, stop ... in samples
    participant: str = "{}"  # JSON object of the allowed participants.tsv columns
    quality: str = "{}"  # JSON object of numbers, see docs/corpus-format.md
    space: str = ""  # of the parcels' positions, "MNI152NLin6Asym"; "" for EEG and where it is not known

    @property
    def seconds(self) -> float:
        """Duration [s]."""
        return self.n_samples / self.sfreq

    @property
    def positions_C3(self) -> "np.ndarray":
        """Channel positions [mm], float32 ``(C, 3)``; rows of NaN where unknown."""
        import numpy as np  # here: a command's help needs this file and no array

        return np.asarray(self.positions_mm, dtype=np.float32).reshape(self.n_channels, 3)


@dataclass(frozen=True)
class Window:
    """A cut of one recording in physical units, before it joins a batch."""

    x_TC: "np.ndarray"  # times ``scale`` in recording.unit; float32 or, as stored, float16
    recording: Recording
    start: int  # first time sample within the recording
    scale: float = 1.0

    @property
    def stop(self) -> int:
        """One past the last time sample within the recording."""
        return self.start + len(self.x_TC)


class Purpose(IntEnum):
    """What a random draw is for: the integer that, beside a key, decides it.

    A change of a number changes what is drawn. Numbers repeat where the keys differ anyway, as those of a step's draws
    are made from the run's key, and those of a view from the sample's.
    """

    # Of a run's key: what steps read.
    ORDER = 0
    SAMPLE = 1
    TURN = 2
    # Of a sample's key, in the loader.
    CUT = 3
    # Of a cut's key.
    FIRST_WINDOW = 0
    SECOND_WINDOW = 1
    # Of an order's key.
    SLOT = 0
    MEMBER = 1
    VISIT = 2
    SITE = 3
    OFFSET = 4
    SITES = 5
    STEPS = 6
    # Of a fold's key in fine-tuning.
    DROP_MODALITY = 1
    WHICH_MODALITY = 2
    WHICH_RECORDING = 3
    START = 4
    # Of a sample's key, in views; VIEW is the first of six, one for each domain and view.
    LATE_VIEW = 106
    VIEW = 1000
    # Of a view's key.
    DROPPED_FRACTION = 101
    DROPPED_CHANNELS = 102
    POSITION = 103
    MASKED_LENGTH = 201
    MASKED_PLACE = 202
    AMPLITUDE = 203
    NOISE = 204
    BAND_WIDTH = 301
    BAND_PLACE = 302
    BAND_KEPT = 303
    TILT = 304


# ---------------------------------------------------------------------------------------------------------
# Counter-based randomness. Every random draw of a run is a function of integers (seed, step, position,
# purpose), never of a generator's state, so nothing has to be saved to resume and no draw depends on the
# number of ranks or workers. mcsp.augmentations.views has the same function for tensors.

_MASK = (1 << 64) - 1


def mix64(value: int) -> int:
    """SplitMix64 finaliser (Steele et al., OOPSLA 2014): a bijection of 64-bit integers that looks random."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def random_key(*parts: int) -> int:
    """Fold integers into one 64-bit key; the order of ``parts`` matters."""
    key = 0
    for part in parts:
        key = mix64(key ^ (part & _MASK))
    return key


def unit_interval(key: int) -> float:
    """A float in [0, 1) with 53 random bits taken from ``key``."""
    return (mix64(key) >> 11) * 2.0**-53


def text_key(text: str) -> int:
    """A 63-bit integer that stands for ``text`` (BLAKE2b), the same in every process."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
