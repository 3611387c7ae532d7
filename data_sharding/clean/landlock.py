"""Landlock of Linux: limit a thread and its children to some folders, irreversibly.

By the kernel's system calls (https://docs.kernel.org/userspace-api/landlock.html), since Linux 5.13.
"""

import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

# The same numbers on x86-64, arm64 and all that came later.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
# Remove and make folders, files, links; no devices and no sockets.
_CHANGE_FOLDER = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
# Version of the interface -> how many rights on files it knows: 2 has REFER, 3 TRUNCATE, 5 IOCTL_DEV.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NO_TCP, _NO_SIGNALS_OR_ABSTRACT_SOCKETS = 0b11, 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """Version of the interface that this kernel has; 0 where it has none or does not allow it."""
    if sys.platform != "linux":
        return 0
    return max(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION), 0)


def limit_to(read: Iterable[Path], write: Iterable[Path] = (), names: Iterable[Path] = ()) -> None:
    """Limit the calling thread for good; what it has opened stays open.

    It can read, write and run nothing else, and from version 4 on connect to nothing by TCP, from 6 on send signals to
    nobody outside. Paths that are not there are left out.

    Args:
        read: files, and folders with all below them.
        write: folders in which it may also make and remove files, and files that it may write.
        names: folders whose names, and those of all folders below, can be listed.

    Raises:
        OSError: the kernel refuses; ask :func:`landlock_version` first.
    """
    version = landlock_version()
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    ruleset = _Ruleset(rights, _NO_TCP if version >= 4 else 0, _NO_SIGNALS_OR_ABSTRACT_SOCKETS if version >= 6 else 0)
    handle = _call("create_ruleset", _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(_size(version)), 0)
    try:
        allowed: dict[Path, int] = {}
        changes = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _CHANGE_FOLDER
        for paths, asked in ((read, _READ_FILE | _READ_DIR), (write, changes), (names, _READ_DIR)):
            for path in paths:
                allowed[path] = allowed.get(path, 0) | asked
        for path, asked in allowed.items():
            _allow(handle, path, asked & rights)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "Landlock: no_new_privs is refused")
        _call("restrict_self", _RESTRICT_SELF, handle, 0)
    finally:
        os.close(handle)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # absent, or in a folder that is closed to us anyway
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        if rights:
            rule = _PathBeneath(rights, parent)
            _call("add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _size(version: int) -> int:
    """Bytes of the ruleset that a version knows."""
    return 8 if version < 4 else 16 if version < 6 else 24


def _call(name: str, number: int, *arguments: object) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {name} is refused ({os.strerror(error)})")
    return result


@lru_cache(maxsize=1)  # opened anew, it would cost more than all the calls of a limit
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
