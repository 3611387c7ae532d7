"""Attributions and patterns as pictures and one HTML file: scalp maps per band (MNE), parcels and edges (nilearn).

Shape letters: C channels, K bands.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from nilearn import plotting

from mcsp.evaluate.report.figures import image
from mcsp.evaluate.report.page import PAGE
from mcsp.explain.attribution import OTHER_BAND
from mcsp.explain.patterns import as_matrix

_FEWEST_ON_SCALP = 4  # electrodes that a scalp map is interpolated between
_EDGES_SHOWN = 40  # of a connectome, the strongest
_TEXT = """
<p>Explained: {explained}; “{positive}” against “{negative}”. Each value is the mean over pairs of windows of the
integrated gradients on the straight line from a {negative} window to a {positive} window of the same site: how much of
the distance between the scores of the two comes through a channel and a band. Red raises the score for “{positive}”.
Values of one modality are in the same unit, that of the score (log-odds, for a logistic probe).</p>
"""
_CAVEAT = """
<p>An attribution says what this classifier uses, not where a disorder is: channels share sources through volume
conduction, parcels through smoothing and motion, and a classifier may use one of several that carry the same. The rank
correlation with a control should be far below 1: a map that a random encoder gives as well does not come from what was
learned. The random encoder keeps the measured features, which have no weights, so where the probe rests on these its
map stays.</p>
"""
_PATTERN_TEXT = """
<h3>What goes along with the score</h3>
<p>{what} of {units} units that the classifier was not fitted on, correlated with their scores inside sites: the forward
pattern of the score (Haufe et al. 2014). It needs no gradient and is sharper in space than the attribution above, which
spreads where features mix channels; it also shows what a classifier does not use but what comes with it.</p>
"""
_MEASURED = {"eeg": "Band power of the electrodes", "fmri": "Connectivity between all pairs of parcels"}


def strongest(results: dict[str, Any], count: int = 3) -> list[str]:
    """One line per modality and site: the band and the channels with the largest attribution."""
    lines = []
    for modality, found in results["modalities"].items():
        for site, of_site in found["sites"].items():
            value_CK = np.array(of_site["attribution"])
            band = found["bands"][int(np.abs(value_CK.sum(0)).argmax())]
            order = np.argsort(-np.abs(value_CK.sum(1)), kind="stable")[:count]
            channels = ", ".join(f"{of_site['channels'][c]} {value_CK[c].sum():+.2g}" for c in order)
            name = f"{site}{' (simulated)' if of_site['simulated'] else ''}"
            lines.append(f"{modality} {name}: difference {of_site['difference']:+.2f}; most in {band}; {channels}")
    return lines


def write_attribution_report(out_dir: Path, results: dict[str, Any]) -> None:
    """Write a picture per modality and ``report.html`` into ``out_dir``."""
    negative, positive = (html.escape(c) for c in results["classes"])
    parts = [_TEXT.format(explained=html.escape(results["explained"]), negative=negative, positive=positive)]
    if any(s["simulated"] for m in results["modalities"].values() for s in m["sites"].values()):
        parts.append(
            '<p class="notice"><b>Simulated sites are among these.</b> Their maps say nothing about brains.</p>'
        )
    for modality, found in results["modalities"].items():
        parts.append(_attribution_section(out_dir, modality, found))
        if found["patterns"]:
            parts.append(_pattern_section(out_dir, modality, found))
    items = "".join(f"<li>{html.escape(line)}</li>" for line in strongest(results))
    parts.append(f"<h2>Largest</h2><ul>{items}</ul>{_CAVEAT}")
    used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    footer = f"{html.escape(used)}. Corpus {results['corpus_index_hash'][:12]}. Every number is in attribution.json."
    page = PAGE.format(title="MCSP: what the score rests on", body="\n".join(parts), footer=footer)
    (out_dir / "report.html").write_text(page)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:+.2f}"


def _attribution_section(out_dir: Path, modality: str, found: dict[str, Any]) -> str:
    if modality == "eeg":
        values = {s: np.c_[v["attribution"], np.sum(v["attribution"], axis=1)] for s, v in found["sites"].items()}
        figure = draw_scalp(found["sites"], [*found["bands"], "all"], values, "attribution")
    else:
        figure = draw_parcels(found)
    figure.savefig(out_dir / f"{modality}.png", dpi=110)
    title = "EEG, per electrode and band" if modality == "eeg" else "fMRI, per parcel, all bands"
    controls = "".join(
        f"<li>{html.escape(kind)}: rank correlation with the map {_number(c['rank_correlation'])}, mean difference "
        f"of scores {c['difference']:+.2f}</li>"
        for kind, c in found["controls"].items()
    )
    return (
        f"<h2>{title}</h2>"
        + image(figure, f"attribution of {modality}")
        + image(draw_bands(found), f"attribution of {modality} by band")
        + f"<p>{found['pairs']} pairs. Attributions miss the differences of scores that they should sum to by "
        f"{found['relative_error']:.1%} (median).</p><ul>{controls}</ul>"
    )


def _pattern_section(out_dir: Path, modality: str, found: dict[str, Any]) -> str:
    patterns = found["patterns"]
    if modality == "eeg":
        bands = [b for b in found["bands"] if b != OTHER_BAND]
        values = {name: np.reshape(p["pattern"], (-1, len(bands))) for name, p in patterns.items()}
        figure = draw_scalp(patterns, bands, values, "correlation with the score")
    else:
        figure = draw_connectome(patterns)
    figure.savefig(out_dir / f"{modality}_patterns.png", dpi=110)
    units = sum(p["units"] for p in patterns.values())
    controls = "".join(
        f"<li>{html.escape(name)}, {html.escape(kind)}: rank correlation with the pattern "
        f"{_number(c['rank_correlation'])}</li>"
        for name, p in patterns.items()
        for kind, c in p["controls"].items()
    )
    text = _PATTERN_TEXT.format(what=_MEASURED[modality], units=units)
    return text + image(figure, f"pattern of {modality}") + f"<ul>{controls}</ul>"


def draw_scalp(
    sites: dict[str, dict[str, Any]], columns: Sequence[str], values: dict[str, np.ndarray], label: str
) -> Figure:
    """A row per site and a map per column of its ``values`` ``(C, columns)``; one colour scale for all."""
    figure = Figure(figsize=(1.9 * len(columns) + 0.8, 2.1 * len(sites) + 0.4), layout="constrained")
    grid = figure.subplots(len(sites), len(columns), squeeze=False)
    limit = max(float(np.abs(v).max()) for v in values.values()) or 1.0
    shown = None
    for axes_row, (site, of_site) in zip(grid, sites.items(), strict=True):
        known = np.flatnonzero(of_site["position_known"])
        for k, (axes, name) in enumerate(zip(axes_row, columns, strict=True)):
            axes.set_title(name, fontsize=10)
            if len(known) < _FEWEST_ON_SCALP:
                axes.axis("off")
                continue
            shown, _ = mne.viz.plot_topomap(
                values[site][known, k], _info(of_site, known), axes=axes, show=False, cmap="RdBu_r",
                vlim=(-limit, limit), contours=4,
            )  # fmt: skip
        axes_row[0].text(-0.15, 0.5, site, rotation=90, ha="right", va="center", transform=axes_row[0].transAxes)
    if shown is not None:
        figure.colorbar(shown, ax=grid, shrink=0.7, label=label)
    return figure


def draw_connectome(patterns: dict[str, dict[str, Any]]) -> Figure:
    """The strongest edges of each group of sites, between centres of parcels; red goes with the positive class."""
    figure = Figure(figsize=(9, 3.3 * len(patterns)))
    for row, (name, found) in enumerate(patterns.items()):
        known = np.flatnonzero(found["position_known"])
        edges_CC = as_matrix(np.array(found["pattern"]), len(found["channels"]))[np.ix_(known, known)]
        strength_Q = np.sort(np.abs(edges_CC[np.triu_indices(len(known), 1)]))[-_EDGES_SHOWN:]
        if not len(strength_Q) or strength_Q[-1] == 0:
            continue
        edges_CC[np.abs(edges_CC) < max(strength_Q[0], 1e-12)] = 0.0
        size_C = 4 + 60 * np.abs(edges_CC).sum(0) / np.abs(edges_CC).sum(0).max()
        plotting.plot_connectome(
            edges_CC, np.array(found["positions_mm"])[known], node_color="#333", node_size=size_C, figure=figure,
            edge_cmap="RdBu_r", edge_vmin=-strength_Q[-1], edge_vmax=strength_Q[-1], title=name, colorbar=True,
            axes=(0.0, 1 - (row + 0.97) / len(patterns), 0.96, 0.94 / len(patterns)),
        )  # fmt: skip
    return figure


def _info(of_site: dict[str, Any], known: np.ndarray) -> mne.Info:
    names = [of_site["channels"][c] for c in known]
    info = mne.create_info(names, 200.0, "eeg")
    places = {name: np.array(of_site["positions_mm"][c]) / 1e3 for name, c in zip(names, known, strict=True)}
    with mne.utils.use_log_level("ERROR"):  # a montage in the head frame without fiducials is what the corpus keeps
        info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"))
    return info


def draw_parcels(found: dict[str, Any]) -> Figure:
    """A glass brain per site with a mark per parcel: the sum over bands."""
    sites = found["sites"]
    figure = Figure(figsize=(9, 3.1 * len(sites)))
    totals = {s: np.sum(v["attribution"], axis=1) for s, v in sites.items()}
    limit = max(float(np.abs(v).max()) for v in totals.values()) or 1.0
    for row, (site, of_site) in enumerate(sites.items()):
        known = np.flatnonzero(of_site["position_known"])
        if not len(known):
            continue
        plotting.plot_markers(
            totals[site][known], np.array(of_site["positions_mm"])[known], node_cmap="RdBu_r", node_vmin=-limit,
            node_vmax=limit, node_size=15 + 130 * np.abs(totals[site][known]) / limit, title=site, figure=figure,
            axes=(0.0, 1 - (row + 0.97) / len(sites), 0.96, 0.94 / len(sites)), colorbar=True,
        )  # fmt: skip
    return figure


def draw_bands(found: dict[str, Any]) -> Figure:
    """The sum over channels of every band, a bar per site, beside the controls' (hollow)."""
    sites = found["sites"]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    place_K = np.arange(len(found["bands"]))
    width = 0.8 / len(sites)
    for k, (site, of_site) in enumerate(sites.items()):
        left_K = place_K - 0.4 + (k + 0.5) * width
        axes.bar(left_K, np.sum(of_site["attribution"], axis=0), width, label=site, color=colormaps["tab10"](k))
        for kind, marker in zip(of_site["controls"], "ox", strict=False):
            label = kind if k == 0 else None
            axes.plot(
                left_K, np.sum(of_site["controls"][kind], axis=0), marker, ms=4, color="#555", mfc="none", label=label
            )
    axes.axhline(0, color="#999", lw=0.8)
    axes.set_xticks(place_K, found["bands"])
    axes.set_ylabel("attribution")
    axes.legend(fontsize=7, frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
