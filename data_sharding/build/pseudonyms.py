"""Pseudonyms: keyed hashes (HMAC-SHA-256, RFC 2104) that stand for subjects and sessions; the key is never written."""

import ctypes
import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mcsp.config import CorpusConfig

KEY_VARIABLE = "MCSP_SUBJECT_KEY"
_MIN_KEY_LENGTH = 16
# Labels with this many digits in a row may be dates or hospital numbers.
_NUMBER = re.compile(r"\d{6,}")
_LETTERS = str.maketrans("0123456789", "ghijklmnop")
_LABEL = re.compile(r"(?<![A-Za-z0-9])(sub|ses)-([A-Za-z0-9]+)")


def subject_key(config: CorpusConfig | None = None) -> bytes:
    """The secret of the subject hashes, from ``subject_key_file`` or the environment.

    Raises:
        ValueError: there is none, or it is too short; the line says how to make one.
    """
    if config is not None and config.subject_key_file is not None:
        try:
            key, source = config.subject_key_file.read_text().strip(), str(config.subject_key_file)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"subject_key_file: {error}") from None
        make = f"openssl rand -hex 32 > {source}"
    else:
        key, source = os.environ.get(KEY_VARIABLE, ""), f"environment: {KEY_VARIABLE}"
        make = f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
    if len(key) < _MIN_KEY_LENGTH:
        found = "is not set" if not key else f"has {len(key)} characters, expected at least {_MIN_KEY_LENGTH}"
        raise ValueError(f"{source} {found}; make one with: {make}")
    return key.encode()


@contextmanager
def without_key_in_environment() -> Iterator[None]:
    """The key is in no environment while the block runs: neither this process's nor that of those it starts.

    What a process was started with stays readable in ``/proc/<pid>/environ``, also for a file that this machine is
    made to read by its name; so the value is overwritten where it lies.
    """
    value = os.environ.get(KEY_VARIABLE)
    if value is not None:
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        place = libc.getenv(KEY_VARIABLE.encode())
        if place:
            ctypes.memset(place, ord("x"), len(value.encode()))
        del os.environ[KEY_VARIABLE]
    try:
        yield
    finally:
        if value is not None:
            os.environ[KEY_VARIABLE] = value


def keyed_hash(key: bytes, *parts: str) -> str:
    """HMAC-SHA-256 of the parts, 64 hexadecimal digits."""
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def subject_hash(key: bytes, site: str, subject: str) -> str:
    """What stands for a subject's label in a corpus: 16 hexadecimal digits."""
    return keyed_hash(key, "subject", site, subject)[:16]


def session_label(key: bytes, session: str) -> str:
    """A session's label in a corpus: hashed where it may be a date, in letters so that nobody takes it for one."""
    return without_dates(session) or (session and keyed_hash(key, "session", session)[:8].translate(_LETTERS))


def without_dates(label: str) -> str:
    """A task or run label as stored: empty where six digits in a row may be a date."""
    return "" if _NUMBER.search(label) else label


def key_fingerprint(key: bytes) -> str:
    """SHA-256 of a keyed hash: says whether two corpora were built under one subject key, and nothing of the key."""
    return hashlib.sha256(keyed_hash(key, "fingerprint").encode()).hexdigest()


def pseudonymise(text: str, site: str, key: bytes) -> str:
    """A file name or message with the subject and session labels that the shards have."""

    def public(match: re.Match[str]) -> str:
        entity, label = match.groups()
        return f"{entity}-{subject_hash(key, site, label) if entity == 'sub' else session_label(key, label)}"

    return _LABEL.sub(public, text)
