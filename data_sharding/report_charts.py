"""The charts of ``report.html``: every site beside the others, then each site by itself."""

import html
from collections.abc import Collection, Sequence

import numpy as np

from mcsp.data_sharding import charts
from mcsp.data_sharding.survey import FREQUENCIES, QUANTITIES, Group, Quantity, example_channels
from mcsp.schema import MODALITIES, UNITS, Modality, Window

MODALITY_NAMES: dict[Modality, str] = {"eeg": "EEG", "fmri": "fMRI"}
ORDER: tuple[Modality, ...] = tuple(sorted(MODALITIES))  # in tables and on the page
_UNIT_NAMES = {"uV": "µV", "percent": "%"}


def anchor(site: str) -> str:
    """Name of the place on the page that shows a site."""
    return f"site-{site}"


def side_by_side(groups: Sequence[Group]) -> str:
    """One chart per modality and quantity, with a row per site."""
    drawn = []
    for modality, quantity, rows in _distributions(groups):
        edges, log = charts.bins(np.concatenate([values for _, values in rows]), quantity.whole)
        low = float(edges[0] if log else max(edges[0], 0.0))
        title = f"{MODALITY_NAMES[modality]}: {quantity.title[modality]}"
        drawn.append(charts.ranges(rows, (low, float(edges[-1])), log, title))
    return (
        "<h2>Sites side by side</h2><p>The dot is the median over recordings, the box holds the middle half, the line "
        f"goes from 5 to 95&nbsp;%.</p><div class=charts>{''.join(drawn)}</div>"
    )


def site_charts(groups: Sequence[Group], simulated: Collection[str]) -> str:
    """Histograms, median spectrum and example traces of each site and modality, on the same axes for every site."""
    bins = {}
    everything = {}
    for modality, quantity, rows in _distributions(groups):
        everything[modality, quantity.name] = np.concatenate([values for _, values in rows])
        bins[modality, quantity.name] = charts.bins(everything[modality, quantity.name], quantity.whole)
    limits = {modality: _power_limits([g for g in groups if g.modality == modality]) for modality in ORDER}
    parts = [
        "<h2>Site by site</h2><p>Bars are the recordings of the site, the dashed outline those of all sites; the axes "
        "are the same for every site, and what lies beyond is in the outermost bars. A spectrum is the median over "
        "recordings, the band holds the middle half of them. Red traces are channels marked bad.</p>"
    ]
    for site in sorted({g.site for g in groups}):
        mark = " <span class=mark>simulated</span>" if site in simulated else ""
        name = html.escape(site)
        parts.append(f'<h3 id="{html.escape(anchor(site))}">{name}{mark} <small><a href="#sites">up</a></small></h3>')
        for group in (g for g in groups if g.site == site):
            drawn = [
                charts.histogram(
                    group.values[quantity.name],
                    everything[group.modality, quantity.name],
                    *bins[group.modality, quantity.name],
                    f"{MODALITY_NAMES[group.modality]}: {quantity.title[group.modality]}",
                    site,
                )
                for quantity in QUANTITIES
                if quantity.name in group.values
            ]
            signals = _spectrum(group, limits[group.modality]) + [_traces(window) for window in group.examples]
            parts += [f"<div class=charts>{''.join(row)}</div>" for row in (drawn, signals)]
    return "\n".join(parts)


def _distributions(groups: Sequence[Group]) -> list[tuple[Modality, Quantity, list[tuple[str, np.ndarray]]]]:
    """Values per site of each modality and quantity that any recording has."""
    found = []
    for modality in ORDER:
        for quantity in QUANTITIES:
            of_modality = [g for g in groups if g.modality == modality and quantity.name in g.values]
            if of_modality:
                found.append((modality, quantity, [(g.site, g.values[quantity.name]) for g in of_modality]))
    return found


def _power_limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Lowest and highest power of the axis: the medians of all sites, three decades below the highest at least."""
    power = [g.quartiles_3F[1] for g in groups if g.quartiles_3F is not None]
    finite = np.concatenate(power)[np.isfinite(np.concatenate(power))] if power else np.empty(0)
    positive = finite[finite > 0]
    if not len(positive):
        return 0.1, 10.0
    # A stop band goes down without end; it is not worth the axis.
    low, high = float(np.percentile(positive, 10)), float(positive.max())
    return max(low / 3, high / 1e5), high * 3


def _spectrum(group: Group, limits: tuple[float, float]) -> list[str]:
    if group.quartiles_3F is None:
        return []
    unit = _UNIT_NAMES[UNITS[group.modality]]
    frequencies = FREQUENCIES[group.modality]
    title = f"{MODALITY_NAMES[group.modality]}: power [{unit}²/Hz], {group.n_spectra} recordings"
    return [charts.spectrum(frequencies, group.quartiles_3F, group.modality == "eeg", limits, title, group.site)]


def _traces(window: Window) -> str:
    recording = window.recording
    shown = example_channels(recording)
    x_TC = window.x_TC[:, shown] - np.median(window.x_TC[:, shown], axis=0)
    title = (
        f"{MODALITY_NAMES[recording.modality]}: from {window.start / recording.sfreq:.0f} s of {recording.subject[:6]}…"
    )
    return charts.traces(
        x_TC,
        len(x_TC) / recording.sfreq,
        [recording.channels[c] for c in shown],
        [recording.channel_good[c] for c in shown],
        _UNIT_NAMES[recording.unit],
        title,
    )
