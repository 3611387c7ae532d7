"""Settings of the builder (``mcsp build``)."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from mcsp.config.base import Config
from mcsp.schema import Modality

Confound = Literal[
    "motion", "high_pass", "wm_csf", "global_signal", "compcor", "ica_aroma", "tedana", "scrub", "non_steady_state"
]


class EegConfig(Config):
    """EEG cleaning; 0.5-75 Hz at 200 Hz as in LaBraM (arXiv 2405.18765) and CBraMod (arXiv 2412.07236)."""

    sfreq: float = Field(200.0, gt=0, description="Hz after resampling")
    highpass_hz: float = Field(0.5, ge=0, description="lower edge of the band-pass; 0: none")
    lowpass_hz: float = Field(75.0, gt=0, description="upper edge of the band-pass")
    max_amplitude_uv: float = Field(5000.0, gt=0, description="median channel amplitude above this means a wrong unit")
    min_amplitude_uv: float = Field(0.1, ge=0, description="median channel amplitude below this means a wrong unit")
    max_bad_fraction: float = Field(0.5, ge=0, le=1, description="more bad channels than this reject the recording")
    mask_artefacts: bool = Field(True, description="leave seconds of artefacts out of the valid spans")
    line_hz: float | None = Field(
        None, gt=0, description="power line, where the sidecar has no PowerLineFrequency; null: no notch there"
    )
    gain: float = Field(1.0, gt=0, description="multiplies every value, for a site whose headers name a wrong unit")


# Atlases that are known by name, in the words of their files, and as nilearn fetches them.
ATLASES = {
    "schaefer": r"Schaefer(?:2018)?_?(\d+)(?:Parcels)?(?:_?(7|17)Networks)?",
    "harvard_oxford": r"HarvardOxford-((?:cort|cortl|sub)-maxprob-thr\d+-[12]mm)",
    "juelich": r"Juelich-(maxprob-thr\d+-[12]mm)",
    "aal": r"AAL(?:-(SPM5|SPM8|SPM12|3v2))?",
    "craddock": r"CC(200|400)",
    "basc": r"BASC(\d+)",
    "power": r"Power2011",
    "dosenbach": r"Dosenbach2010",
    "seitzman": r"Seitzman2018",
}
ATLAS_NAMES = (
    "Schaefer2018_400Parcels_7Networks, AAL, HarvardOxford-cort-maxprob-thr25-2mm, Juelich-maxprob-thr25-2mm, CC200, "
    "CC400, BASC122, Power2011, Dosenbach2010, Seitzman2018"
)


class FmriConfig(Config):
    """BOLD cleaning; values become percent signal change."""

    label_image: Path | None = Field(
        None, description="integer NIfTI parcellation for 4-D BOLD images without their own"
    )
    label_space: str | None = Field(
        None, description="standard space of label_image, where neither its name nor a table of known atlases says it"
    )
    image_space: str | None = Field(None, description="standard space of images whose names have no space-")
    atlas: str | None = Field(
        None, description="atlas of tables and images by name, as nilearn fetches it: Schaefer2018_400Parcels_7Networks"
    )
    parcellation: str | None = Field(None, description="seg- of the time series to read; null: the first by name")
    detrend: bool = Field(True, description="remove a linear trend from each parcel's series")
    bandpass_hz: tuple[float, float] | None = Field(None, description="of the signals and the regressors; null: none")
    confounds: list[Confound] | None = Field(
        None, description="strategies of nilearn's load_confounds to regress out of fMRIPrep images; null: none"
    )
    max_fd_mm: float | None = Field(
        None, gt=0, description="volumes with more framewise displacement are left out of the valid spans; null: none"
    )
    min_parcel_coverage: float = Field(
        0.5, ge=0, le=1, description="fraction of a parcel's voxels that an image must cover, as in xcp_d"
    )
    max_bad_fraction: float = Field(0.5, ge=0, le=1, description="more parcels without signal reject the recording")

    @field_validator("atlas")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and not any(re.fullmatch(pattern, name) for pattern in ATLASES.values()):
            raise ValueError(f"expected a name like {ATLAS_NAMES}; a file goes into label_image")
        return name


# A path would lose one of the slashes of a URL.
Place = Annotated[Path | str, AfterValidator(lambda place: place if "://" in str(place) else Path(place))]
Pairing = Literal["session", "subject", "simultaneous"]


class Selection(Config):
    """Which recordings of a dataset are wanted; labels with or without their prefix, numbers without leading zeros."""

    subjects: list[str | int] | None = Field(None, description="labels of the subjects to take; null: all")
    sessions: list[str | int] | None = Field(None, description="labels of the sessions to take; null: all")
    tasks: list[str | int] | None = Field(None, description="labels of the tasks to take; null: all")
    runs: list[str | int] | None = Field(None, description="labels of the runs to take; null: all")
    exclude: list[str | int] | None = Field(
        None, description="subjects to leave out, or patterns of files in the dataset, as sub-03/ses-2/*"
    )
    derivatives: str | None = Field(
        None,
        description="folder below derivatives/ whose files come before all others, the only one that is read; none: no "
        "derivatives; null: raw EEG before derivatives, processed BOLD before raw images",
    )


class SiteConfig(Selection):
    """One BIDS dataset; what it says of the selection comes before what is said for all."""

    path: Place = Field(description="folder of the dataset, or s3://..., which is read without a copy of the whole")
    storage_options: dict[str, Any] = Field(
        {}, description="of a dataset in an object store, as fsspec takes them: {anon: true} for a public bucket"
    )
    simulated: bool | None = Field(None, description="null: read from dataset_description.json")
    label_image: Path | None = Field(None, description="overrides fmri.label_image for this site")
    eeg: dict[str, Any] = Field({}, description="values of `eeg` that differ for this site")
    fmri: dict[str, Any] = Field({}, description="values of `fmri` that differ for this site")
    pairing: Pairing = Field(
        "simultaneous",
        description="what makes a sample: all recordings of a session, or of a subject; simultaneous: of a session, "
        "with the offsets between recordings that overlap by acq_time of *_scans.tsv",
    )
    first_volume_event: str | None = Field(
        None,
        description="trial_type or value of events.tsv that marks the first volume in simultaneous EEG; it comes "
        "before acq_time, which is of two computers and often of whole seconds",
    )


class CorpusConfig(Selection):
    """``mcsp build``."""

    bids_root: Path | None = Field(
        None, description="folder whose BIDS sub-folders are the sites, unless `sites` lists them"
    )
    out_dir: Place = Field(description="where the corpus is written: a folder, or s3://..., gs://...")
    private_dir: Place | None = Field(
        None,
        description="where the build keeps original names beside their hashes, a folder or s3://... outside of out_dir "
        "that all workers see; null: .build in out_dir, for you alone; needed where out_dir is an object store",
    )
    sites: dict[str, SiteConfig] = Field({}, description="site name -> {path, simulated, label_image}")
    participants_columns: list[str] = Field([], description="columns of participants.tsv to store")
    family_column: str | None = Field(None, description="column of participants.tsv whose values stay in one split")
    eeg: EegConfig = Field(EegConfig(), description="EEG cleaning")
    fmri: FmriConfig = Field(FmriConfig(), description="BOLD cleaning")
    min_seconds: dict[Modality, Annotated[float, Field(ge=0)]] = Field(
        {"eeg": 10.0, "fmri": 30.0}, description="shorter recordings are rejected"
    )
    samples_per_shard: int = Field(64, ge=1, description="largest number of samples (subject-sessions) per tar")
    split_fractions: tuple[float, float, float] = Field((0.8, 0.1, 0.1), description="train, validation, test")
    seed: int = Field(0, description="of the split and of the order of samples")
    subject_key_file: Path | None = Field(
        None,
        description="file with the key of the subject hashes, 64 hexadecimal digits; null: variable MCSP_SUBJECT_KEY",
    )
    allow_public_key: bool = Field(
        False, description="allow a key that others know, for demo data only: with it, hashes lead back to subjects"
    )
    trusted_link_targets: list[Path] = Field(
        [], description="folders outside of the datasets that links and headers may lead to; all others are refused"
    )
    on_error: Literal["raise", "warn", "quarantine"] = Field(
        "quarantine", description="a bad recording ends the build, is listed with a warning, or is listed"
    )
    max_quarantined: float = Field(
        0.05, ge=0, le=1, description="the build fails where more than this part of the recordings is bad; 5% or 0.05"
    )
    read_timeout_seconds: float = Field(900.0, gt=0, description="longest time to read and clean one recording")
    site_timeout_seconds: float = Field(
        14_400.0,
        gt=0,
        description="limit for reading files of one site that do not end; the rest of the site is then skipped",
    )
    read_memory_gb: float = Field(16.0, gt=0, description="address space for reading one recording [10^9 bytes]")
    allow_open_cluster: bool = Field(
        False,
        description="allow a Ray cluster without authentication: everybody who reaches it can run programs as you",
    )
    workers: int | None = Field(None, ge=1, description="Ray CPUs of a local Ray; null: all cores")

    def eeg_of(self, site: str) -> EegConfig:
        """EEG cleaning of one site."""
        own = self.sites[site].eeg if site in self.sites else {}
        return EegConfig.parse({**self.eeg.dump(), **own}, f"sites.{site}.eeg") if own else self.eeg

    def selection_of(self, site: str) -> Selection:
        """What is wanted of one site."""
        own = self.sites.get(site, self)
        values = {name: getattr(own, name) for name in Selection.model_fields}
        return Selection(**{k: getattr(self, k) if v is None else v for k, v in values.items()})

    def fmri_of(self, site: str) -> FmriConfig:
        """BOLD cleaning of one site."""
        own = self.sites[site].fmri if site in self.sites else {}
        return FmriConfig.parse({**self.fmri.dump(), **own}, f"sites.{site}.fmri") if own else self.fmri

    @field_validator("max_quarantined", mode="before")
    @classmethod
    def _percent(cls, value: object) -> object:
        return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else value

    @field_validator("bids_root", mode="before")
    @classmethod
    def _local(cls, place: object) -> object:
        if "://" in str(place):
            raise ValueError(f"expected a folder of this machine, found {place}; or sites.NAME.path={place}")
        return place

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.sites:
            self.eeg_of(name), self.fmri_of(name)
            for section, fixed in ((self.sites[name].eeg, "sfreq"), (self.sites[name].fmri, "label_image")):
                if fixed in section:
                    raise ValueError(f"sites.{name}: {fixed!r} cannot be set here")
        if abs(sum(self.split_fractions) - 1) > 1e-6 or min(self.split_fractions) < 0:
            raise ValueError(f"split_fractions: expected three fractions that sum to 1, found {self.split_fractions}")
        if self.bids_root is None and not self.sites:
            raise ValueError("expected bids_root=DIR or a list of sites")
        return self
