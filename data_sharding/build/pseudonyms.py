"""Pseudonyms: keyed hashes (HMAC-SHA-256, RFC 2104) that stand for subjects and sessions; the key is never written."""

import ctypes
import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mcsp.config import CorpusConfig
from mcsp.data_sharding.build.privacy import may_be_date
from mcsp.schema import KEY_VARIABLE

_KEY = re.compile(r"[0-9a-fA-F]{64}")
# Of 32 random bytes fewer are different, or all are text, less than once in 10^13 keys.
_LEAST_DIFFERENT = 16
# 128 bits: subjects are told apart, however many there are.
_HASH_DIGITS = 32
_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def subject_key(config: CorpusConfig | None = None) -> bytes:
    """The secret of the subject hashes, from ``subject_key_file`` or the environment: 32 random bytes as 64 digits.

    Raises:
        ValueError: there is none, it has another form, or it is a public one without ``allow_public_key``; the line
            says how to make one.
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
    if not key:
        raise ValueError(f"{source} is not set; make one with: {make}")
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"{source} has {len(key)} characters, expected 32 random bytes as 64 hexadecimal digits; make one with: "
            f"{make}"
        )
    raw = bytes.fromhex(key)
    # Every key that this repository publishes is text, filled up with zeros; a random one is not.
    is_text = raw.isascii() and raw.rstrip(b"\0").decode().isprintable()
    is_public = is_text or len(set(raw)) < _LEAST_DIFFERENT
    if is_public and not (config is not None and config.allow_public_key):
        raise ValueError(
            f"{source} is text or a pattern, as the public keys of the demo and the benchmarks: everybody who knows it "
            f"finds the subjects of its hashes; make a secret one with: {make}; or, for data without people to "
            "protect, set allow_public_key=true"
        )
    return key.lower().encode()


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
    """What stands for a subject's label in a corpus: 32 hexadecimal digits."""
    return keyed_hash(key, "subject", site, subject)[:_HASH_DIGITS]


def session_label(key: bytes, site: str, subject: str, session: str) -> str:
    """A session's label in a corpus: hashed where it may be a date, in letters so that nobody takes it for one.

    The hash is of the subject as well, so that two people's visits on one day do not look alike.
    """
    if not may_be_date(session):
        return session
    return keyed_hash(key, "session", site, subject, session)[:_HASH_DIGITS].translate(_LETTERS)


def key_fingerprint(key: bytes) -> str:
    """SHA-256 of a keyed hash: says whether two corpora were built under one subject key, and nothing of the key."""
    return hashlib.sha256(keyed_hash(key, "fingerprint").encode()).hexdigest()
