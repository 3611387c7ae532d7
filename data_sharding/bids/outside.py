"""Files of a dataset lie inside of it: a link, or a name in a header, must not bring in other people's data.

Where data lie decides under whose consent they are used. A link into the dataset's own annex stays inside; folders
outside are read where ``trusted_link_targets`` names them.
"""

from collections.abc import Iterable
from pathlib import Path

from mcsp.data_sharding.bids.find import Site
from mcsp.data_sharding.bids.reasons import RecordingError


def require_inside(site: Site, files: Iterable[Path]) -> None:
    """Raise :class:`RecordingError` (outside-dataset) for a file whose real place is outside of its site's folder.

    Args:
        site: with ``trusted`` None nothing is refused: somebody has named the file by hand.
        files: as the dataset, or a header in it, names them.
    """
    if site.trusted is None:
        return
    allowed = [folder.resolve() for folder in (site.root, *site.trusted)]
    if site.label_image is not None:  # the configuration names it
        allowed.append(site.label_image.parent.resolve())
    for file in files:
        if not any(file.resolve().is_relative_to(folder) for folder in allowed):
            raise RecordingError(
                "outside-dataset",
                f"{file.name}: lies outside of its dataset, through a link or a name in a header; expected it below "
                "the dataset's folder, or its folder under trusted_link_targets",
            )
