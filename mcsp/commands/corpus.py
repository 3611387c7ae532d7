"""``mcsp write-bids``, ``build``, ``status``, ``lint`` and ``report``: build and inspect a corpus."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from mcsp.commands.settings import require_place, takes
from mcsp.config import CorpusConfig
from mcsp.outside import read_text

_CLEAR = "\033[H\033[J"  # of a terminal: to the top, and nothing below


@takes(CorpusConfig, ("bids_root",))
def build(config: CorpusConfig, *, address: str | None = None) -> int:
    """Turn BIDS datasets into a corpus; prints what was found, stored and rejected per site.

    Runs Ray on this machine, or on a cluster with --address or inside ``ray job
    submit``. The status is 1 where more recordings are bad than max_quarantined
    allows.

    mcsp build --config corpus/demo.yaml bids_root=DIR out_dir=DIR

    Args:
        address: of a running Ray cluster
    """
    # Ray, MNE and nilearn take seconds to import; a mistake in the configuration is told before.
    from mcsp.data_sharding.build.corpus import build_corpus
    from mcsp.data_sharding.build.seal import TooManyQuarantinedError
    from mcsp.data_sharding.inspect.report import index_table

    try:
        index, was_there = build_corpus(config, address)
    except TooManyQuarantinedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(index_table(index))
    print(f"{'already complete' if was_there else 'corpus'}: {config.out_dir} (index hash {index['index_hash'][:12]})")
    return 0


def status(out_dir: str, /, *, watch: bool = False, interval: float = 5.0) -> int:
    """Show the progress of a build, from any machine that sees its folder; a line per site.

    Args:
        out_dir: of the build, a folder or a URL like s3://...
        watch: again every few seconds, until the build ends
        interval: seconds, with --watch
    """
    from mcsp.data_sharding.build.progress import read_status, status_lines
    from mcsp.data_sharding.store.files import location

    out = location(out_dir)
    try:
        while True:
            found = read_status(out)
            text = "\n".join(status_lines(out, found, datetime.now(UTC)))
            print(_CLEAR + text if watch and sys.stdout.isatty() else text, flush=True)
            if not watch or (found is not None and found["state"] != "running"):
                return 0
            time.sleep(interval)
    except KeyboardInterrupt:
        return 0


def lint(corpus_dir: str, /, *, workers: int = 1, privacy: bool = False, names: Path | None = None) -> int:
    """Re-read a corpus and print each difference to its index; the status is 1 if there is one.

    Args:
        corpus_dir: a corpus, a folder or a URL like s3://...
        workers: processes that read shards
        privacy: look for dates, names, record numbers, e-mail addresses, paths instead
        names: with --privacy: a file of people's names, one per line
    """
    if workers < 1 or (names and not privacy):
        raise ValueError("--workers must be 1 or more, and --names goes with --privacy")
    require_place(corpus_dir, "corpus_dir")
    from mcsp.data_sharding.build.privacy import find_identifiers_in_corpus, name_words
    from mcsp.data_sharding.inspect.lint import lint_corpus
    from mcsp.data_sharding.store.files import location
    from mcsp.data_sharding.store.index import read_index

    path = location(corpus_dir)
    if privacy:
        known = read_text(names).splitlines() if names else []
        lies = find_identifiers_in_corpus(path, name_words(known), workers)
    else:
        lies = lint_corpus(path, workers)
    counts = read_index(path)["totals"]["all"]
    for lie in lies:
        print(lie)
    summary = f"{counts['samples']} samples, {counts['recordings']} recordings, {counts['hours']:.2f} h"
    noun, good = ("finding", "nothing found that may identify a person") if privacy else ("fault", "sound")
    bad = f"{len(lies)} {noun}{'' if len(lies) == 1 else 's'}"
    print(f"{corpus_dir}: {bad if lies else good} ({summary})")
    return 1 if lies else 0


def report(corpus_dir: str, /) -> int:
    """Write report.html of a finished corpus again, and README.md, its card; the build writes both too.

    Args:
        corpus_dir: a corpus, a folder or a URL like s3://...
    """
    require_place(corpus_dir, "corpus_dir")
    from mcsp.data_sharding.inspect.report import write_report
    from mcsp.data_sharding.store.files import location

    print(write_report(location(corpus_dir)))
    return 0


def write_bids(
    manifest: Path, out_dir: Path, /, *, atlas: str | None = None, space: str = "", dry_run: bool = False
) -> int:
    """Turn a table of files into BIDS derivatives, ready for ``mcsp build``; each site becomes a dataset in OUT_DIR.

    MANIFEST (.tsv or .csv) has a row per recording: path, subject, t_r [s] (or sampling_rate [Hz], for EEG), and where
    there are any session, site, task, run, space, units (percent), line_hz. Every other column is a label of the
    person. Taken in are tables of time series (.tsv, .csv, .1D, .txt, .npy; a column per parcel), .ptseries.nii,
    images, and EEG of one file.

    Args:
        manifest: the table
        out_dir: the sites become folders below it
        atlas: of the columns: a name that nilearn fetches, a label image, or a *_dseg.tsv
        space: standard space of a label image whose name does not say it
        dry_run: read everything, print what would be written
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest}: expected a table of recordings, found no such file")
    from mcsp.data_sharding.convert.to_bids import check_site, find_atlas, plan_sites, read_manifest, write_site

    found = find_atlas(atlas, space)
    plans = plan_sites(read_manifest(manifest))
    faults = [f"{plan.name}: {fault}" for plan in plans for fault in check_site(plan, found)]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        return 2
    for plan in plans:
        root = out_dir / plan.name
        what = f"{len(plan.rows)} recordings of {len(plan.labels)} people, columns {', '.join(plan.columns) or 'none'}"
        if dry_run:
            print(f"{root}: would hold {what}")
        else:
            print(f"{root}: {'written' if write_site(plan, out_dir, found) else 'there already'}, {what}")
    return 0
