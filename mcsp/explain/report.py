"""Attributions and patterns as pictures and one HTML file: scalp maps per band (MNE), parcels and edges (nilearn).

Shape letters: C channels, K bands.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from nilearn import plotting

from mcsp.evaluate.report.page import STYLE, raster, vector
from mcsp.explain.attribution import OTHER_BAND, as_matrix
from mcsp.output import write_whole
from mcsp.page import COLOURS, GREY, render
from mcsp.wording import shortened

_FEWEST_ON_SCALP = 4  # electrodes that a scalp map is interpolated between
_EDGES_SHOWN = 40  # of a connectome, the strongest
_CHANNELS_SHOWN = 3  # of a site, those with the largest attribution


def strongest(results: dict[str, Any]) -> list[str]:
    """One line per modality and site: the band and the channels with the largest attribution."""
    lines = []
    for modality, found in results["modalities"].items():
        for site, of_site in found["sites"].items():
            value_CK = np.array(of_site["attribution"])
            band = found["bands"][int(np.abs(value_CK.sum(0)).argmax())]
            order = np.argsort(-np.abs(value_CK.sum(1)), kind="stable")[:_CHANNELS_SHOWN]
            channels = ", ".join(f"{of_site['channels'][c]} {value_CK[c].sum():+.2g}" for c in order)
            name = f"{site}{' (simulated)' if of_site['simulated'] else ''}"
            lines.append(f"{modality} {name}: difference {of_site['difference']:+.2f}; most in {band}; {channels}")
    return lines


def write_attribution_report(out_dir: Path, results: dict[str, Any]) -> None:
    """Write a picture per modality and ``report.html`` into ``out_dir``."""
    with rc_context({"text.parse_math": False}):  # a dollar in a name is no formula
        pictures = {modality: _pictures(out_dir, modality, found) for modality, found in results["modalities"].items()}
    page = render(
        "explanation.html.jinja",
        title="MCSP: what the score rests on",
        footer=", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + f". Corpus {results['corpus_index_hash'][:12]}. Every number is in attribution.json.",
        results=results,
        simulated=any(s["simulated"] for m in results["modalities"].values() for s in m["sites"].values()),
        largest=strongest(results),
        pictures=pictures,
    )
    write_whole(out_dir / "report.html", page)


def _pictures(out_dir: Path, modality: str, found: dict[str, Any]) -> dict[str, Markup]:
    """The maps of one modality, which are also files, and its sum per band."""
    patterns, eeg = found["patterns"], modality == "eeg"
    if eeg:
        values = {s: np.c_[v["attribution"], np.sum(v["attribution"], axis=1)] for s, v in found["sites"].items()}
        figures = {"attribution": draw_scalp(found["sites"], [*found["bands"], "all"], values, "attribution")}
    else:
        figures = {"attribution": draw_parcels(found)}
    if patterns and eeg:
        bands = [b for b in found["bands"] if b != OTHER_BAND]
        values = {name: np.reshape(p["pattern"], (-1, len(bands))) for name, p in patterns.items()}
        figures["patterns"] = draw_scalp(patterns, bands, values, "correlation with the score")
    elif patterns:
        figures["patterns"] = draw_connectome(patterns)
    for kind, figure in figures.items():
        figure.savefig(out_dir / f"{modality}{'_patterns' if kind == 'patterns' else ''}.png", dpi=110)
    maps = {kind: raster(figure, f"{kind} of {modality}") for kind, figure in figures.items()}
    return {**maps, "bands": vector(draw_bands(found), f"attribution of {modality} by band")}


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
        axes_row[0].text(
            -0.15, 0.5, shortened(site, 24), rotation=90, ha="right", va="center", transform=axes_row[0].transAxes
        )
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
            edges_CC, np.array(found["positions_mm"])[known], node_color=GREY, node_size=size_C, figure=figure,
            edge_cmap="RdBu_r", edge_vmin=-strength_Q[-1], edge_vmax=strength_Q[-1], colorbar=True,
            title=shortened(name, 60), axes=(0.0, 1 - (row + 0.97) / len(patterns), 0.96, 0.94 / len(patterns)),
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
            node_vmax=limit, node_size=15 + 130 * np.abs(totals[site][known]) / limit, figure=figure,
            axes=(0.0, 1 - (row + 0.97) / len(sites), 0.96, 0.94 / len(sites)), colorbar=True,
            title=shortened(site, 60),
        )  # fmt: skip
    return figure


@rc_context(STYLE)
def draw_bands(found: dict[str, Any]) -> Figure:
    """The sum over channels of every band, a bar per site, beside the controls' (hollow)."""
    sites = found["sites"]
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    place_K = np.arange(len(found["bands"]))
    width = 0.8 / len(sites)
    for k, (site, of_site) in enumerate(sites.items()):
        left_K = place_K - 0.4 + (k + 0.5) * width
        colour = COLOURS[k % len(COLOURS)]
        axes.bar(left_K, np.sum(of_site["attribution"], axis=0), width * 0.94, label=shortened(site, 24), color=colour)
        for kind, marker in zip(of_site["controls"], "ox", strict=False):
            total_K = np.sum(of_site["controls"][kind], axis=0)
            axes.plot(left_K, total_K, marker, ms=4, color=GREY, mfc="none", label=kind if k == 0 else None)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xticks(place_K, found["bands"])
    axes.set_ylabel("attribution")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure
