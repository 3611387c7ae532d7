"""Pseudonyms: what they are is pinned here, because a corpus that is continued must give the same ones."""

import hashlib
import hmac
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.build.pseudonyms import (
    KEY_VARIABLE,
    key_fingerprint,
    keyed_hash,
    session_label,
    subject_hash,
    subject_key,
    without_key_in_environment,
)

KEY = hashlib.sha256(b"a key for these tests").hexdigest()


def by_hand(*parts: str) -> str:
    """HMAC of RFC 2104 from its definition."""
    block = KEY.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + "\0".join(parts).encode()).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def test_subjects_are_the_first_half_of_an_hmac_of_site_and_label() -> None:
    key = KEY.encode()
    assert keyed_hash(key, "a", "b") == by_hand("a", "b") == hmac.new(key, b"a\0b", "sha256").hexdigest()
    assert subject_hash(key, "site", "01") == by_hand("subject", "site", "01")[:32]
    assert len({subject_hash(key, *who) for who in (("a", "1"), ("b", "1"), ("a", "2"), ("a1", ""))}) == 4
    assert key_fingerprint(key) == hashlib.sha256(by_hand("fingerprint").encode()).hexdigest()


def test_sessions_that_may_be_dates_are_letters_and_differ_from_person_to_person() -> None:
    key = KEY.encode()
    digits = by_hand("session", "site", "01", "20190504")[:32]
    expected = "".join("ghijklmnop"[int(c)] if c.isdigit() else c for c in digits)
    assert session_label(key, "site", "01", "20190504") == expected and expected.isalpha()
    assert session_label(key, "site", "02", "20190504") != expected != session_label(key, "b", "01", "20190504")
    assert session_label(key, "site", "01", "baseline") == "baseline" and session_label(key, "site", "01", "") == ""


@pytest.mark.parametrize(
    ("raw", "secret"),
    [
        (bytes.fromhex(KEY), True), (b"\xff" + b"a secret of text and filled up".ljust(31, b"\0"), True),
        (b"a secret of text and filled up".ljust(32, b"\0"), False), (bytes(range(200, 216)) * 2, True),
        (bytes(range(200, 215)) * 2 + b"\xc8\xc9", False), (bytes(32), False),
    ],
)  # fmt: skip
def test_a_key_of_text_or_of_few_different_bytes_is_public(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: bytes, secret: bool
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, raw.hex().upper())
    config = CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out", allow_public_key=True)
    assert subject_key(config) == raw.hex().encode()
    if secret:
        assert subject_key() == raw.hex().encode()
    else:
        for strict in (None, config.model_copy(update={"allow_public_key": False})):
            with pytest.raises(ValueError, match="is text or a pattern, as the public keys of the demo"):
                subject_key(strict)


@pytest.mark.parametrize("n", [63, 65])
def test_a_key_has_64_digits(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setenv(KEY_VARIABLE, (KEY * 2)[:n])
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} has {n} characters, expected 32 random bytes as 64"):
        subject_key()


def test_while_it_runs_the_key_is_neither_in_the_environment_nor_where_the_process_began(tmp_path: Path) -> None:
    """Another program may read the latter in /proc."""
    code = f"""
import os
from mcsp.data_sharding.build.pseudonyms import without_key_in_environment
began = lambda: open("/proc/self/environ", "rb").read()
assert b"{KEY}" in began()
with without_key_in_environment():
    assert "{KEY_VARIABLE}" not in os.environ and b"{KEY}" not in began() and b"x" * 64 in began()
print(os.environ["{KEY_VARIABLE}"])
"""
    environment = {**os.environ, KEY_VARIABLE: KEY}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == KEY


def test_the_key_comes_back_also_after_an_error_and_nothing_comes_where_none_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(KeyError), without_key_in_environment():
        raise KeyError
    assert os.environ[KEY_VARIABLE] == KEY
    monkeypatch.delenv(KEY_VARIABLE)
    with without_key_in_environment():
        assert KEY_VARIABLE not in os.environ
    assert KEY_VARIABLE not in os.environ
