"""participants.tsv: what a site says of its subjects."""

from mcsp.data_sharding.bids.find import Site, read_tsv


def read_participants(site: Site) -> dict[str, dict[str, str]]:
    """Rows of a site's participants.tsv by subject label; none where there is no such file."""
    file = site.root / "participants.tsv"
    if not file.is_file():
        return {}
    rows = read_tsv(file)
    if rows and "participant_id" not in rows[0]:
        raise ValueError(f"{file}: expected a column participant_id, found {', '.join(rows[0])}")
    return {row["participant_id"].removeprefix("sub-"): row for row in rows if "participant_id" in row}
