"""The recordings to classify: a corpus, or one that is built here from BIDS folders."""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcsp.config import Config, CorpusConfig, EegConfig, FmriConfig, LabelledConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.encode.recording import cleaning_of
from mcsp.evaluate.units import ENTITIES
from mcsp.outside import read_text
from mcsp.schema import KEY_VARIABLE, Modality

KEY_NAME = "subject.key"


def open_corpus(config: LabelledConfig, out_dir: Path, model: PretrainedMCSP, columns: Sequence[str] = ()) -> Corpus:
    """The corpus of ``config``; where it names BIDS folders, one built into ``out_dir/corpus``, or found there.

    Recordings are cleaned with the constants in the export's preprocessing.json. Subjects are hashed under
    ``MCSP_SUBJECT_KEY`` where that is set, which has to be the pretraining's key if an overlap is to be noticed; else
    under a random one of this ``out_dir``, which only its owner can read.

    Args:
        config: with ``corpus_dir`` or ``bids_root``.
        out_dir: of the results.
        model: the export.
        columns: of participants.tsv, beside the label and ``group_column``; names that no table has are ignored here.

    Raises:
        ValueError: no usable corpus, or BIDS folders of which none can be built; one line.
    """
    if config.corpus_dir is not None:
        return Corpus(config.corpus_dir)
    assert config.bids_root is not None
    try:
        from mcsp.data_sharding.build.corpus import build_corpus
    except ModuleNotFoundError as error:
        raise ValueError(
            f"bids_root: needs the extra corpus: pip install 'mcsp-pretraining[corpus]' ({error})"
        ) from None
    root = config.bids_root
    one = (root / "participants.tsv").is_file() or (root / "dataset_description.json").is_file()
    tables = root.glob("participants.tsv" if one else "*/participants.tsv")
    heads = [read_text(table).partition("\n")[0] for table in tables]
    present = {name.strip() for head in heads for name in head.split("\t")}
    wanted = [config.label, *columns, *filter(None, [config.group_column])]
    out_dir.mkdir(parents=True, exist_ok=True)
    key_file = None
    if not os.environ.get(KEY_VARIABLE):
        key_file = _random_key(out_dir / KEY_NAME)
    known = model.preprocessing.get("cleaning", {})
    kinds: dict[Modality, type[Config]] = {"eeg": EegConfig, "fmri": FmriConfig}
    cleaning = {m: cleaning_of(model, m, kind).dump() for m, kind in kinds.items() if m in known}
    values: dict[str, Any] = {"sites": {root.name: {"path": root}}} if one else {"bids_root": root}
    values |= cleaning | {
        "out_dir": out_dir / "corpus",
        "participants_columns": [c for c in dict.fromkeys(wanted) if c in present and c not in ENTITIES],
        "split_fractions": (0.0, 0.0, 1.0),
        "subject_key_file": key_file,
        "max_quarantined": 1.0,
    }
    index, found = build_corpus(CorpusConfig.parse(values, "bids_root"))
    totals = index["totals"]["all"]
    state = "found" if found else "built"
    print(f"corpus: {state} {out_dir / 'corpus'}, {totals['recordings']} recordings, {totals['rejected']} rejected")
    return Corpus(out_dir / "corpus")


def _random_key(file: Path) -> Path:
    """The key of this folder, made where there is none; kept, so that the same command finds its corpus again."""
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as key:
            key.write(secrets.token_hex(32))
    return file
