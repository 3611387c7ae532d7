"""Exports and corpora to the Hugging Face Hub, with the extra ``hub``; ``mcsp.from_pretrained`` loads exports from it.

A repository holds the files of one folder and nothing else. Its card begins with what the Hub reads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcsp.encode.pretrained import from_pretrained
from mcsp.model.weights import SUMS_FILE, read_sums
from mcsp.schema import Modality
from mcsp.wording import listed

# Of the Hub's own names of metrics.
_METRICS = {
    "auroc": "roc_auc",
    "balanced_accuracy": "balanced_accuracy",
    "r2": "r_squared",
    "r": "pearsonr",
    "mae": "mae",
}
_OF_CORPUS = [
    "index.json", "recordings-*.arrow", "rejected-*.jsonl", "repairs-*.jsonl", "shards/*", "dataset_description.json",
    "report.html", "README.md",
]  # fmt: skip


def front_matter(size: str, modalities: Sequence[Modality], evaluation: Mapping[str, Any] | None) -> str:
    """The lines between ``---`` above a model card, from which the Hub takes licence, task and scores.

    Args:
        size: of the model.
        modalities: that it encodes.
        evaluation: content of results.json; its strict rows of the pretrained encoder become the model-index.
    """
    known: dict[str, Any] = {
        "license": "other",
        "license_name": "terms-of-the-weights",
        "license_link": "README.md",
        "library_name": "mcsp",
        "pipeline_tag": "feature-extraction",
        "tags": [*modalities, "self-supervised"],
    }
    results = [] if evaluation is None else _results(evaluation)
    if results:
        known["model-index"] = [{"name": f"MCSP {size}", "results": results}]
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---\n"


def _results(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    sites = [f"{site} (simulated)" if v["simulated"] else site for site, v in evaluation["sites"].items()]
    dataset = {"name": ", ".join(sites), "type": f"mcsp-corpus-{evaluation['corpus_index_hash'][:12]}"}
    found = []
    for row in evaluation["classification"]:
        if row["features"] != "pretrained" or row["transductive"]:
            continue
        estimates = {name: row.get(name) for name in _METRICS}
        values = {name: v["value"] if isinstance(v, Mapping) else v for name, v in estimates.items()}
        metrics = [{"type": _METRICS[n], "name": n, "value": round(v, 4)} for n, v in values.items() if v is not None]
        asked = f"{evaluation['label']['name']} from {row['recordings']}, {row['protocol']}, {row['classifier']}"
        found.append({"task": {"type": "feature-extraction", "name": asked}, "dataset": dataset, "metrics": metrics})
    return found


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload an export, or a corpus; the address of the commit.

    An export is loaded, and a corpus read back in full, before anything leaves the machine, and a repository is private
    unless asked otherwise: the terms of the recordings come first (see docs/data-terms.md). Other files that lie in the
    folder (results of an evaluation with its key, say) stay where they are.

    Raises:
        ValueError: as ``mcsp.from_pretrained``; or a corpus that is not as its index says.
    """
    from huggingface_hub import HfApi

    kind = "dataset" if (Path(folder) / "index.json").is_file() else "model"
    files = _OF_CORPUS
    if kind == "model":
        from_pretrained(folder)
        files = ["README.md", SUMS_FILE, *read_sums(Path(folder))]
    else:
        from mcsp.data_sharding.inspect.lint import lint_corpus  # which needs the extra corpus

        if lies := lint_corpus(Path(folder)):
            raise ValueError(f"{folder}: expected a sound corpus, found {listed(lies, 3, '; ')}")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind)
    done = api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), revision=revision, repo_type=kind, delete_patterns="*",
        allow_patterns=files, commit_message="MCSP export" if kind == "model" else "MCSP corpus",
    )  # fmt: skip
    return str(done.commit_url)
