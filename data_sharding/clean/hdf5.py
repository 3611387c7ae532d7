"""HDF5 files (MATLAB 7.3) of strangers: one that takes its values from other files is not read.

HDF5 can store a dataset in any file of the machine (external storage), map it from others (virtual datasets), and link
into other files (external links); what lies there would be published as if it were the recording
(https://docs.hdfgroup.org/hdf5/v1_14/_h5_d__u_g.html, "External Storage").
"""

from pathlib import Path

import h5py

from mcsp.data_sharding.bids.reasons import RecordingError


def require_own_values(path: Path) -> None:
    """Raise :class:`RecordingError` (unsafe-file) for an HDF5 file whose values lie elsewhere; others pass unread."""
    if not h5py.is_hdf5(path):
        return
    with h5py.File(path, "r") as file:
        _look_into(file, path.name, set())


def _look_into(group: h5py.Group, file_name: str, seen: set[int]) -> None:
    for name in group:
        where = f"{group.name.rstrip('/')}/{name}"
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            target = getattr(link, "filename", "") or getattr(link, "path", "")
            raise _unsafe(file_name, f"{where!r} is a link ({target})")
        item = group.get(name)
        if isinstance(item, h5py.Dataset):
            if item.external:
                raise _unsafe(file_name, f"{where!r} is stored in another file ({item.external[0][0]})")
            if item.is_virtual:
                raise _unsafe(file_name, f"{where!r} is a virtual dataset of other files")
        elif isinstance(item, h5py.Group):
            key = h5py.h5o.get_info(item.id).addr
            if key not in seen:  # a group may hold itself
                seen.add(key)
                _look_into(item, file_name, seen)


def _unsafe(file_name: str, found: str) -> RecordingError:
    return RecordingError("unsafe-file", f"{file_name}: {found}, expected values in the file itself")
