"""Simulated sites as BIDS datasets: the demo's two (simultaneous EEG and BOLD), and those of a consortium."""

from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from mcsp.data_sharding.bids import write as bids_write
from mcsp.data_sharding.demo.simulate import SimulatedSite, parcel_lattice, simulate_subject
from mcsp.data_sharding.demo.simulate_consortium import N_PARCELS, ConsortiumSite, simulate_consortium_subject

FORMAT = 1  # raise when what is written or simulated changes, so that older demo sites are replaced
CONSORTIUM_FORMAT = 1  # the same for the consortium
_DESCRIPTION = {"DatasetType": "derivative", "License": "CC0", "Simulated": True}

# fmt: off
_MONTAGE_A = ("Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7", "C3", "Cz", "C4", "T8", "P7", "P3", "Pz", "P4", "P8",
              "O1", "O2")  # the 10-20 system
_MONTAGE_B = ("AF3", "AF4", "F5", "F6", "FC1", "FC2", "C5", "C6", "CP1", "CP2", "P5", "P6", "PO3", "PO4")
# fmt: on
SIMULATED_A = SimulatedSite(
    "simulated-a",
    n_subjects=48,
    channels=_MONTAGE_A,
    eeg_sfreq=250.0,
    line_hz=50.0,
    n_parcels=60,
    t_r=2.0,
    seconds=240.0,
    gain=1.0,
    seed=101,
)  # fmt: skip
SIMULATED_B = SimulatedSite(
    "simulated-b", n_subjects=48, channels=_MONTAGE_B, eeg_sfreq=200.0, line_hz=60.0, n_parcels=48, t_r=1.5,
    seconds=240.0, gain=1.3, seed=202,
)  # fmt: skip

README_SIMULATED = """
SIMULATED. No recording of a person is in here. Simultaneous EEG and BOLD of {n} subjects from the generator of MCSP
(demo/simulate.py): eight sources whose slow power fluctuations show in both modalities. Column 'diagnosis' of
participants.tsv is the generator's label: cases have a stronger and more coupled central source pair.

Terms: none (public domain).
"""
README_CONSORTIUM = """
SIMULATED. No recording of a person is in here. Parcellated resting-state BOLD of {n} subjects at one of several sites,
from the generator of MCSP (demo/simulate_consortium.py, which says what is planted). Column 'diagnosis' of
participants.tsv is the generator's label: a shift of connectivity, small beside the differences between people, along
the modes in which people differ most. That it lies in those modes is an assumption of the generator.

Terms: none (public domain).
"""


def write_simulated(root: Path, site: SimulatedSite) -> bool:
    """One simulated site: simultaneous EEG and parcellated BOLD of every subject."""
    segmentation = f"Lattice{site.n_parcels}"
    parcels, positions_P3 = parcel_lattice(site.n_parcels)
    eeg = {
        "SamplingFrequency": site.eeg_sfreq,
        "PowerLineFrequency": site.line_hz,
        "EEGReference": "n/a (simulated: infinity)",
        "SoftwareFilters": "n/a",
        "Manufacturer": "n/a (simulated)",
        "Simulated": True,
    }

    def write(folder: Path) -> None:
        """The recordings of every subject, their times, the parcellation and participants.tsv."""
        rows = []
        for index in tqdm(range(site.n_subjects), desc=site.name, unit="subject"):
            subject, one = f"{index + 1:03d}", simulate_subject(site, index)
            bold = {"RepetitionTime": site.t_r, "Simulated": True}
            written = (
                bids_write.write_eeg(folder, subject, "rest", one.eeg_uv_CT, site.channels, eeg),
                bids_write.write_parcellated_bold(folder, subject, segmentation, parcels, one.bold_PT, bold),
            )
            scans = [(f"{path.parent.name}/{path.name}", bids_write.SAME_INSTANT) for path in written]
            scans_path = folder / f"sub-{subject}" / f"sub-{subject}_scans.tsv"
            bids_write.write_tsv(scans_path, ("filename", "acq_time"), scans)
            rows.append((f"sub-{subject}", one.label))
        bids_write.write_parcellation(folder, segmentation, parcels, positions_P3)
        about = {"Description": "simulated label", "Levels": {"control": "baseline", "case": "changed source pair"}}
        bids_write.write_participants(folder, {"diagnosis": about}, rows)

    description = {"Name": f"simulated paired EEG-fMRI, {site.name}", **_DESCRIPTION}
    readme = README_SIMULATED.format(n=site.n_subjects)
    return bids_write.build_once(root, description, readme, {"format": FORMAT, **asdict(site)}, write)


def write_consortium_site(root: Path, site: ConsortiumSite) -> bool:
    """One site of a simulated consortium: parcellated BOLD of every subject."""
    segmentation = f"Lattice{N_PARCELS}"
    parcels, positions_P3 = parcel_lattice(N_PARCELS)

    def write(folder: Path) -> None:
        """The recordings of every subject, the parcellation and participants.tsv."""
        rows = []
        for index in tqdm(range(site.n_subjects), desc=site.name, unit="subject"):
            subject, one = f"{index + 1:03d}", simulate_consortium_subject(site, index)
            sidecar = {"RepetitionTime": site.t_r, "Simulated": True}
            bids_write.write_parcellated_bold(folder, subject, segmentation, parcels, one.bold_PT, sidecar)
            rows.append((f"sub-{subject}", one.label))
        bids_write.write_parcellation(folder, segmentation, parcels, positions_P3)
        about = {"Description": "simulated label", "Levels": {"control": "baseline", "case": "shifted connectivity"}}
        bids_write.write_participants(folder, {"diagnosis": about}, rows)

    description = {"Name": f"simulated resting-state fMRI, {site.name}", **_DESCRIPTION}
    readme = README_CONSORTIUM.format(n=site.n_subjects)
    return bids_write.build_once(root, description, readme, {"format": CONSORTIUM_FORMAT, **asdict(site)}, write)
