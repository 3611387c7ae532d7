"""What a corpus holds and lost, as text for a terminal."""

from typing import Any

from mcsp.data_sharding.recording import REASONS


def index_table(index: dict[str, Any]) -> str:
    """Found, stored and rejected recordings and hours per site, and how often each reason occurred."""
    header = ("site", "found", "stored", "rejected", "subjects", "hours")
    rows: list[tuple[str, ...]] = [header]
    for site, counts in [*index["totals"]["sites"].items(), ("all", index["totals"]["all"])]:
        name = f"{site} (simulated)" if counts.get("simulated") else site
        values = (counts["found"], counts["recordings"], counts["rejected"], counts["subjects"])
        rows.append((name, *map(str, values), f"{counts['hours']:.2f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines += [f"rejected {n} x {reason}: {REASONS.get(reason, '')}" for reason, n in index["reasons"].items()]
    return "\n".join(lines)
