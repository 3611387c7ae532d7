"""What a model card says of sites, cost, curves and results."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mcsp.data_sharding.description import DESCRIPTION_NAME
from mcsp.data_sharding.reader import Corpus
from mcsp.schema import Modality, Recording


def site_table(used: Sequence[Recording], corpus: Corpus) -> str:
    """A row per site of the recordings ``used``."""
    sources = sources_of(corpus)
    rows = []
    for site in sorted({r.site for r in used}):
        of_site = [r for r in used if r.site == site]
        kind = "simulated" if any(r.simulated for r in of_site) else "recorded"
        tasks = ", ".join(sorted({r.task for r in of_site if r.task})) or "not stated"
        rows.append(
            f"| {site} | {kind} | {len({r.subject for r in of_site})} | {len({r.key for r in of_site})} | {tasks} "
            f"| {_amount(of_site, 'eeg')} | {_amount(of_site, 'fmri')} | {_terms(sources.get(site, {}))} |"
        )
    head = "| site | kind | subjects | samples | tasks | EEG | BOLD | terms |\n|---|---|---|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def sources_of(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """What each site's description says of its origin."""
    path = corpus.path / DESCRIPTION_NAME
    sources = json.loads(path.read_text())["SourceDatasets"] if path.is_file() else []
    return {source["Site"]: source for source in sources}


def _terms(source: Mapping[str, Any]) -> str:
    stated = [source.get("License") or "not stated", source.get("DOI")]
    return ", ".join(text.replace("|", "/") for text in stated if text)


def _amount(recordings: Sequence[Recording], modality: Modality) -> str:
    """Hours, numbers of channels or parcels, and rates or repetition times of one modality."""
    of = [r for r in recordings if r.modality == modality]
    if not of:
        return "none"
    channels = sorted({r.n_channels for r in of})
    span = f"{channels[0]}" if len(channels) == 1 else f"{channels[0]} to {channels[-1]}"
    what = f"{span} channels" if modality == "eeg" else f"{span} parcels, TR {_spelled({1 / r.sfreq for r in of})} s"
    return f"{sum(r.seconds for r in of) / 3600:.2f} h, {what}"


def _spelled(values: set[float]) -> str:
    return " or ".join(dict.fromkeys(f"{value:.3g}" for value in sorted(values)))


def cost_line(manifest: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]) -> str:
    """A sentence on ranks, hours, operations and memory, of what was logged."""
    ranks, hours = manifest.get("world_size", 1), manifest.get("useful_seconds", 0.0) / 3600
    parts = [f"{ranks} {'rank' if ranks == 1 else 'ranks'} for {hours:.2f} hours ({ranks * hours:.2f} rank-hours)"]
    speeds = [line["tflops"] for line in metrics if line.get("tflops")]
    if speeds:
        operations = statistics.fmean(speeds) * ranks * hours * 3600 / 1e3
        parts.append(f"about {operations:.3g} PFLOP")
    memory = [line["memory_gib"] for line in metrics if line.get("memory_gib")]
    if memory:
        parts.append(f"at most {max(memory):.1f} GiB of memory per rank")
    return f"Cost: {', '.join(parts)}. Steps that were lost to a crash are not in it."


def curve_rows(metrics: Sequence[Mapping[str, float]]) -> str:
    """Loss and terms at the last logged step."""
    last: Mapping[str, float] = metrics[-1] if metrics else {}
    shown = ["loss"] * ("loss" in last) + sorted(k for k in last if k.startswith(("loss/", "top1/")))
    rows = [f"| {name} | {last[name]:.4g} |" for name in shown] or ["| (nothing was logged) | |"]
    return "| quantity at the last logged step | value |\n|---|---|\n" + "\n".join(rows)


def results_text(evaluation: Mapping[str, Any] | None, corpus: Corpus) -> str:
    """The strict rows of an evaluation, and whose recordings they are of."""
    if evaluation is None:
        return "No evaluation came with this export."
    sites = evaluation["sites"]
    names = ", ".join(f"{s} (simulated)" if v["simulated"] else s for s, v in sites.items())
    own = "the corpus of the pretraining" if evaluation["corpus_index_hash"] == corpus.index_hash else "another corpus"
    seen = evaluation["subjects_seen_in_pretraining"]
    rows = [
        f"| {r['recordings']} | {r['protocol']} | {r['features']}, {r['classifier']} | {r['auroc']['value']:.3f} "
        f"({r['auroc']['ci_low']:.3f} to {r['auroc']['ci_high']:.3f}) |"
        for r in evaluation["classification"]
        if not r["transductive"] and r["auroc"] is not None
    ]
    head = "| recordings | tested on | method | AUROC (95 % interval over subjects) |\n|---|---|---|---|\n"
    return (
        f"`{evaluation['label']['name']}` ({' against '.join(evaluation['label']['classes'])}) of "
        f"{evaluation['subjects']} subjects of {own}, {'unknown how many' if seen is None else seen} of them seen in "
        f"pretraining; sites: {names}.\n\n{head}" + "\n".join(rows)
    )
