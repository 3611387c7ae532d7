"""Search all that a corpus publishes for personal data.

Only forms are found: a name that no table lists, or what a free text tells of somebody, has none. Every pattern takes
time that grows with the length of a text and not with its square: repetitions have bounds, or begin where no other can.

Whatever a shard holds is made from an allow-list, so a finding means that something slipped into a label, a channel's
name or a participants column, or that the corpus was changed later. Findings show the shape of a text, not the text.
"""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain
from multiprocessing import get_context
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME, printable, read_json
from mcsp.data_sharding.store.files import Location
from mcsp.data_sharding.store.index import (
    INDEX_NAME,
    REJECTED_NAME,
    REPAIRS_NAME,
    SHARDS_NAME,
    Rejection,
    Repair,
    read_rejected,
    read_repairs,
)
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import RECORDINGS_NAME, Recordings
from mcsp.outside import parse_json
from mcsp.wording import listed

_MONTHS = "jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
# A count says of what it is one; without a unit a long number may be that of a hospital.
_UNITS = (
    r"(?:samples?|bytes?|volumes?|voxels?|values?|points?|records?|lines?|rows?|columns?|Hz|kHz|ms|s|uV|µV|mV|V|%)\b"
)
_PATTERNS: dict[str, re.Pattern[str]] = {
    kind: re.compile(pattern, re.IGNORECASE)
    for kind, pattern in {
        "e-mail": r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
        "MAC address": r"(?<![\w:-])[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![\w:-])",
        "IP address": (
            r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?![\w.])"
            r"|(?<![\w:])(?:fe80|f[cd][0-9a-f]{2}|2[0-9a-f]{3}):(?:[0-9a-f]{0,4}:){1,6}[0-9a-f]{1,4}(?![\w:])"
        ),
        "DICOM UID": r"(?<![\w.])[0-2]\.\d{1,3}(?:\.\d{1,39}){3,16}(?![\w.])",
        "serial number": (
            r"(?<![a-z])(?:s/n|sn|serial(?:[\s_-]{0,2}(?:no|nr|num(?:ber)?))?|(?:device)?serialnumber)[\s.:#=]{1,3}"
            r"(?=[a-z-]{0,16}\d)[a-z\d-]{3,32}"
        ),
        "birth year": (
            r"(?<![a-z])(?:born|birth(?:[\s_-]?(?:day|date|year))?|geb|geboren|jahrgang|n[ée]e?|yob|dob)(?![a-z])"
            rf"[\s.:,=_*-]{{0,3}}(?:(?:in|on|am|im|en|le)\s)?{_YEAR}(?!\d)"
        ),
        "age": (
            r"(?<![\d.,])(?:9\d|1[0-2]\d)(?:[.,]\d{1,3})?[\s-]?(?:years?|yrs?|y\.?o\.?|jahre|ans|a[nñ]os)(?![a-z])"
            r"|(?<![a-z])(?:age[ds]?|alter)[\s:=_]{0,3}(?:9\d|1[0-2]\d)(?:[.,]\d{1,3})?(?![\d.,])"
        ),
        "path": r"(?:(?<![\w./:<])/(?:[\w.~+@-]+/)+[\w.~+@-]*|(?<!\w)[a-z]:\\\S+|\\\\\w+\\\S+|(?<!\w)~/\w|\b(?:file|s3|gs|abfs)://)",
        "date": (
            rf"(?<!\d){_YEAR}([-./_]){_MONTH}\1{_DAY}(?!\d)"  # 1987-05-12
            rf"|(?<!\d){_YEAR}-(?:0[1-9]|1[0-2])(?![\d-])"  # 1987-05
            rf"|(?<!\d){_DAY}([-./_]){_MONTH}\2(?:{_YEAR}|\d\d)(?![\d.])"  # 12.05.1987, 12.05.87
            rf"|(?<!\d){_MONTH}([-/])(?:{_DAY})\3(?:{_YEAR}|\d\d)(?!\d)"  # 05/12/1987
            r"|(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"  # 19870512
            rf"|(?<!\d){_DAY}\.?[-\s_]?(?:{_MONTHS})[a-zä]{{0,8}}\.?[-,\s_]{{0,3}}(?:{_YEAR}|\d\d)(?!\d)"  # 12-MAY-1987
            rf"|(?<![a-z])(?:{_MONTHS})[a-zä]{{0,8}}\.?[-\s_]{_DAY}(?:st|nd|rd|th)?[-,\s_]{{1,3}}{_YEAR}(?!\d)"
        ),
        "time": r"(?<![\d:])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?![\d:])",
        "subject id": r"(?<![a-z0-9])sub-[a-z0-9]+",
        "record number": rf"(?<![\d.])\d{{6,}}(?!\.?\d)(?!\s{{0,3}}{_UNITS})",
    }.items()
}
# Columns whose very name says that they identify.
_COLUMN = re.compile(
    r"(^|_)(dob|yob|mrn|date|zip|record(_?(no|number|id))?|sn|uid)($|_)|birth|name|address|phone|mail|acq_time|postal"
    r"|insurance|serial|jahrgang|geburt|naissance",
    re.IGNORECASE,
)
_YEAR_COLUMN = re.compile(r"year|jahr|ann[ée]e", re.IGNORECASE)
# A session's label that may be a date: six digits or more, a year alone or with a month's name.
_DATE_LABEL = re.compile(
    rf"\d{{6,}}|(?<!\d){_YEAR}(?!\d)|\d(?:{_MONTHS})(?![a-z])|(?<![a-z])(?:{_MONTHS})\d", re.IGNORECASE
)
# What we write: a SHA-256, a subject's hash in place of the label, and numbered files with a part of their hash.
_HASH = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9a-f]{64}|sub-[0-9a-f]{32}|(?:train|validation|test)-\d{5,}(?:-[0-9a-f]{6,})?"
    r"|(?:recordings|rejected|rejections|repairs)-[0-9a-f]{8,})(?![0-9A-Za-z])"
)
_SUBJECT = re.compile(r"[0-9a-f]{32}")
# Published identifiers, which may hold long numbers; only in what describes a dataset.
_REFERENCE = re.compile(r"https?://\S+|\b(?:doi:)?10\.\d{4,}/\S+", re.IGNORECASE)
_NPY_HEADER = re.compile(rb"\{'descr': '<[fu][24]', 'fortran_order': False, 'shape': \(\d+, ?(?:\d+)?\), \} *\n")
_MAX_AGE = 89  # ages above are identifying (45 CFR 164.514(b)(2), "Safe Harbor")
_MIN_NAME = 3  # letters; a shorter name would be found in every other word
_LABELLED = ("subject", "session", "task", "acquisition", "run", "direction")
_LABEL, _NAME_LENGTH = re.compile(r"[A-Za-z0-9]+"), 64


def name_words(names: Iterable[str]) -> frozenset[str]:
    """The words of people's names that are looked for: case folded, of three letters or more."""
    return frozenset(w for name in names for w in re.findall(r"[^\W\d_]+", name.casefold()) if len(w) >= _MIN_NAME)


def suspicious(text: str, names: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """Kind and text of everything in ``text`` that may identify a person; ``names`` are from :func:`name_words`."""
    return [(kind, text[start:stop]) for kind, start, stop in _places(text, names)]


def redact(text: str, names: frozenset[str] = frozenset()) -> str:
    """``text`` with everything that :func:`suspicious` finds replaced by its kind in brackets."""
    for kind, start, stop in sorted(_places(text, names), key=lambda place: -place[1]):
        text = f"{text[:start]}[{kind}]{text[stop:]}"
    return text


@lru_cache(maxsize=1 << 16)
def _places(text: str, names: frozenset[str]) -> list[tuple[str, int, int]]:
    """Kind, start and stop of every finding; none overlap."""
    text = _HASH.sub(lambda match: "x" * len(match.group()), text)
    found: list[tuple[str, int, int]] = []
    for kind, pattern in _PATTERNS.items():
        found += [(kind, *match.span()) for match in pattern.finditer(text)]
        text = pattern.sub(lambda match: " " * len(match.group()), text)  # a date is no record number too
    words = re.finditer(r"[^\W\d_]+", text) if names else ()
    return found + [("name", *word.span()) for word in words if word.group().casefold() in names]


def find_identifiers(
    texts: Iterable[tuple[str, str]], names: frozenset[str], known: Iterable[str] = (), references: bool = False
) -> Iterator[str]:
    """One line per finding in pairs of place and text.

    Args:
        texts: where each text stands, and the text.
        names: of people, from :func:`name_words`.
        known: hashes that may be in any text.
        references: whether addresses and DOIs, which may hold any number, are published ones.
    """
    known = tuple(known)

    @lru_cache(maxsize=_REMEMBERED_TEXTS)  # channels of all recordings of a site have the same names
    def found_in(text: str) -> list[tuple[str, str]]:
        text = _REFERENCE.sub("x", text) if references else text
        for part in known:
            text = text.replace(part, "x")
        return suspicious(text, names)

    for place, text in texts:
        for kind, found in found_in(text):
            shown = redact(place, names) if found_in(place) else place
            yield f"{shown}: {kind} like {shape(found)!r}"


def find_identifiers_in_participant(where: str, columns: Mapping[str, Any], names: frozenset[str]) -> Iterator[str]:
    """Findings in the columns of participants.tsv that went along: their names, texts and whole numbers."""
    for column, value in columns.items():
        if _COLUMN.search(column):
            yield f"{where}: column {column!r} may identify a person"
        if column.lower().startswith("age") and _number(value) > _MAX_AGE:
            yield f"{where}: {column} above {_MAX_AGE}"
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and _YEAR_COLUMN.search(column) and re.fullmatch(_YEAR, str(value)):
            yield f"{where}: {column} may be a birth year"
        yield from find_identifiers([(f"{where}: {column}", "" if isinstance(value, float) else str(value))], names)


def _number(value: Any) -> float:
    """A cell as a number, where it begins with one: 91.5, "91,5 years"; 0 for any other."""
    found = re.match(r"\s{0,3}(\d{1,9}(?:[.,]\d{1,6})?)", str(value))
    return float(found[1].replace(",", ".")) if found else 0.0


def may_be_date(label: str) -> bool:
    """Whether a session's label may be a date or a part of one: 20190504, 04May2019, 2019, or a number as long."""
    return _DATE_LABEL.search(label) is not None


def without_dates(label: str) -> str:
    """A task or run label as stored: empty where six digits in a row may be a date or a hospital's number."""
    return "" if re.search(r"\d{6,}", label) else label


def find_identifiers_in_shard(path: Location, names: frozenset[str] = frozenset()) -> list[str]:
    """Findings in a shard: the headers and padding of its tar, its JSON members, the headers of its arrays."""
    where = f"shards/{path.name}"
    texts: list[tuple[str, str]] = []
    lies: list[str] = []
    subjects: set[str] = set()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                place = f"{where}: {member.name}"
                texts += [(f"{place}: tar header", text) for text in _header_texts(file, member)]
                file.seek(member.offset_data)
                if member.name.endswith(".npy"):
                    texts.append((f"{place}: array header", _npy_text(file)))
                elif member.name.endswith(".json"):
                    content = json.loads(file.read(member.size), object_pairs_hook=_Pairs)
                    texts += [(f"{place}: {inner}", text) for inner, text in walk(content)]
                    top = dict(content)
                    subjects |= {s for s in [top.get("subject")] if isinstance(s, str) and _SUBJECT.fullmatch(s)}
                    lies += find_identifiers_in_participant(
                        f"{place}: participant", dict(top.get("participant", {})), names
                    )
                    if may_be_date(str(top.get("session", ""))):
                        lies.append(f"{place}: session: date like {shape(str(top['session']))!r}")
                    lies += [f"{place}: key {key!r} may identify a person" for key in top if _COLUMN.search(key)]
                else:
                    lies.append(f"{place}: neither an array nor metadata")
            file.seek(archive.offset)
            texts.append((f"{where}: end", _text(file.read())))
    except (tarfile.TarError, OSError, ValueError, TypeError, RecursionError) as error:
        lies.append(f"{where}: cannot be read to its end ({' '.join(str(error).split())[:100]})")
    # The hashes of the shard's subjects may be in any of its names.
    return [*lies, *find_identifiers(texts, names, subjects)]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every one of its pairs, also where a key is there twice."""


def walk(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and text of every key and string in a JSON value."""
    if isinstance(content, _Pairs | dict):
        for key, value in content.items() if isinstance(content, dict) else content:
            yield f"{place} key", key
            yield from walk(value, f"{place}.{key}" if place else key)
    elif isinstance(content, list | tuple):
        inside = f"{place}[]"
        for value in content:
            if isinstance(value, str):  # names of channels, mostly: no generator for each of them
                yield inside, value
            elif not isinstance(value, float | int):
                yield from walk(value, inside)
    elif isinstance(content, str):
        yield place, content


def _header_texts(file: BinaryIO, member: tarfile.TarInfo) -> list[str]:
    """The text fields of a member's header (POSIX ustar), its pax records, its time, and the padding after it."""
    file.seek(member.offset)
    header = file.read(tarfile.BLOCKSIZE)
    fields = [header[a:b] for a, b in ((0, 100), (157, 257), (265, 297), (297, 329), (345, 512))]
    end = member.offset_data + member.size
    file.seek(end)
    fields.append(file.read(-end % tarfile.BLOCKSIZE))
    texts = [member.name, *map(_text, fields)]
    texts += [f"{key} {value}" for key, value in member.pax_headers.items()]
    if member.mtime:
        texts.append(datetime.fromtimestamp(member.mtime, UTC).isoformat())
    return [text for text in texts if text]


def _text(content: bytes) -> str:
    return content.replace(b"\0", b" ").decode("latin-1").strip()


def _npy_text(file: BinaryIO) -> str:
    """The header of a .npy member without what NumPy writes for a plain array: nothing, where all is well."""
    np.lib.format.read_magic(file)
    header = file.read(int.from_bytes(file.read(2), "little"))
    return "" if _NPY_HEADER.fullmatch(header) else header.decode("latin-1")


def shape(text: str) -> str:
    """What a text looks like: digits as 9, letters as x, so that a log does not repeat what must not be read."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "9", text))


_ROWS_AT_ONCE, _REMEMBERED_TEXTS = 8192, 65_536


def find_identifiers_in_shards(path: Location, shards: Sequence[str], names: frozenset[str]) -> list[list[str]]:
    """Findings in each of some shards of the corpus in ``path``."""
    return [find_identifiers_in_shard(path / SHARDS_NAME / shard, names) for shard in shards]


def find_identifiers_in_corpus(path: Location, names: frozenset[str] = frozenset(), workers: int = 1) -> list[str]:
    """Findings in all that a finished corpus publishes: index, rejections, description, table and every shard.

    Raises:
        ValueError: there is no finished corpus, or its description cannot be read.
    """
    corpus = Corpus(str(path))
    findings = [*find_identifiers_in_index(corpus.index, read_json(path / DESCRIPTION_NAME), names)]
    findings += find_identifiers_in_table(corpus.recordings, names)
    findings += find_identifiers_in_lists(chain(read_rejected(path), read_repairs(path)), names)
    shards = [path / SHARDS_NAME / shard["name"] for shard in corpus.index["shards"]]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        scan = map if workers == 1 else pool.map
        results = scan(partial(find_identifiers_in_shard, names=names), shards)
        for found in tqdm(results, total=len(shards), desc="privacy", unit="shard", mininterval=0.5):
            findings += found
    return findings


def find_identifiers_in_index(
    index: Mapping[str, Any], description: Mapping[str, Any], names: frozenset[str]
) -> Iterator[str]:
    """Findings in ``index.json`` and ``dataset_description.json``; versions of software may look like dates."""
    texts = [(f"{INDEX_NAME}: {place}", text) for place, text in walk({**index, "software": {}})]
    yield from find_identifiers(texts, names)
    made_by = [{**made, "Description": ""} for made in description.get("GeneratedBy", ())]
    described = walk({**description, "GeneratedBy": made_by})
    yield from find_identifiers([(f"{DESCRIPTION_NAME}: {p}", text) for p, text in described], names, references=True)


def find_identifiers_in_lists(entries: Iterable[Rejection | Repair], names: frozenset[str]) -> Iterator[str]:
    """Findings in the lists of rejections and repairs."""
    for entry in entries:
        where = REJECTED_NAME if isinstance(entry, Rejection) else REPAIRS_NAME
        yield from find_identifiers([(f"{where}: {name}", text) for name, text in vars(entry).items()], names)


def find_identifiers_in_table(table: Recordings, names: frozenset[str]) -> Iterator[str]:
    """Findings in the text columns of the table of recordings, read some thousand rows at a time."""
    for column in ("shard", "modality", "site", "task", "run", "split", "unit", "dtype"):
        yield from find_identifiers([(f"{RECORDINGS_NAME}: {column}", t) for t in table.codes(column)[1]], names)
    seen: dict[str, set[str]] = defaultdict(set)

    def new(column: str, texts: Iterable[str]) -> list[str]:
        found = sorted(set(texts) - seen[column])
        if len(seen[column]) < _REMEMBERED_TEXTS:  # what comes again later is told again, and not remembered
            seen[column].update(found)
        return found

    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(table)))
        subjects = table.texts("subject", rows)
        for column in ("key", "member", "session"):
            texts = zip(table.texts(column, rows), subjects, strict=True)
            distinct = new(column, (text.replace(subject, "x") for text, subject in texts))
            yield from find_identifiers([(f"{RECORDINGS_NAME}: {column}", text) for text in distinct], names)
        for label in new("session date", table.texts("session", rows)):
            if may_be_date(label):
                yield f"{RECORDINGS_NAME}: session: date like {shape(label)!r}"
        for text in new("participant", table.texts("participant", rows)):
            yield from find_identifiers_in_participant(f"{RECORDINGS_NAME}: participant", parse_json(text), names)
        quality = {measure for text in table.texts("quality", rows) for measure in parse_json(text)}
        for measure in new("quality", quality):
            yield from find_identifiers([(f"{RECORDINGS_NAME}: quality", measure)], names)
    channels = {name for montage in table.distinct("channels") for name in montage}
    yield from find_identifiers([(f"{RECORDINGS_NAME}: channels", name) for name in sorted(channels)], names)


def require_labels(ref: RecordingRef) -> None:
    """Raise :class:`RecordingError` for a name that BIDS does not allow: it may hold anything, a person's for example.

    A name with something else between its entities is read by nobody as it was meant.
    """
    if (odd := ref.entities.get("")) is not None and printable(odd) == odd:
        raise RecordingError("bad-name", f"{ref.path.name}: {odd!r} between its entities, expected each as key-label")
    for entity in _LABELLED:
        label = ref.entities.get(entity, "1")
        if not _LABEL.fullmatch(label) and printable(label) == label:  # what is no UTF-8 is told when it is read
            raise RecordingError("bad-name", f"{ref.path.name}: {entity} {label!r}, expected letters and digits")


def refuse_personal(ref: RecordingRef, participant: str, channels: Sequence[str]) -> None:
    """Raise :class:`RecordingError` where a text that would go along has the form of a date, a record number, ...

    People's names are looked for when the corpus is sealed: a list of them may change without the recordings.
    """
    if longest := next((name for name in channels if len(name) > _NAME_LENGTH), None):
        name = f"a channel or parcel is called {longest[:20]!r}..., {len(longest)} characters"
        raise RecordingError("bad-name", f"{ref.path.name}: {name}, expected at most {_NAME_LENGTH}")
    texts = [(entity, without_dates(ref.entities.get(entity, ""))) for entity in ("task", "run")]
    found = [*_of_channels(tuple(channels)), *find_identifiers(texts, frozenset())]
    found += find_identifiers_in_participant("participants.tsv", json.loads(participant), frozenset())
    if found:
        raise RecordingError("suspected-personal-data", listed(found, 3, "; "))


@lru_cache(maxsize=256)  # all recordings of a site have the same
def _of_channels(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(find_identifiers([("channel", name) for name in names], frozenset()))
