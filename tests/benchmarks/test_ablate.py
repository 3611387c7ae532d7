"""The ablation harness through its launcher: resumable, one bad variant costs itself alone, differences to the base."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ablation.settings import AblateConfig
from benchmarks.ablation.table import UNTRAINED, markdown, summarise
from mcsp.data_sharding.store.reader import Corpus

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["batch={paired: 4, eeg: 0, fmri: 0}", "window_seconds={eeg: 10, fmri: 30}", "steps=1", "warmup_steps=1"]


def config(out_dir: Path, corpus_dir: Path, **changes: object) -> AblateConfig:
    values: dict[str, object] = {
        "corpus_dir": corpus_dir, "out_dir": out_dir, "overrides": SMALL, "seeds": [0],
        "variants": {"base": ["model.domains=[spectral]"], "bad": ["model.domains=[spectral]", "init_from=nowhere"]},
    }  # fmt: skip
    return AblateConfig.parse({**values, **changes}, "test")


def scores(auroc: float, site: float = 0.5) -> dict[str, dict[str, float | None]]:
    return {
        "trained": {"auroc_learned": auroc, "auroc_learned_eeg": auroc - 0.2, "site": site, "retrieval": None},
        "untrained": {"auroc_learned": 0.6, "site": 0.9, "retrieval": None},
    }


def test_differences_are_taken_seed_by_seed() -> None:
    results = [
        {"variant": name, "seed": seed, "scores": scores(value)}
        for name, values in {"base": (0.7, 0.8), "other": (0.71, 0.83)}.items()
        for seed, value in enumerate(values)
    ]
    rows = {row["variant"]: row for row in summarise(results, ["base", "missing", "other"], "base")}
    assert list(rows) == ["base", UNTRAINED, "other"]
    gain = rows["other"]["minus_base"]["auroc_learned"]
    assert gain["mean"] == pytest.approx(0.02) and gain["sd"] == pytest.approx(0.0141, abs=1e-3) and gain["n"] == 2
    assert gain["se"] == pytest.approx(0.01)
    assert rows["base"]["minus_untrained"]["auroc_learned"]["mean"] == pytest.approx(0.15)
    assert "retrieval" not in rows["base"]["scores"]
    scored, minus, eeg = markdown(list(rows.values()), "base").split("\n\n")[1:6:2]
    assert "0.750 ± 0.071" in scored.splitlines()[2] and "| retrieval" not in scored
    assert "| other" in minus.splitlines()[-2] and "+0.020 ± 0.010" in minus.splitlines()[-2]
    assert eeg.splitlines()[2].count("|") == 4 and "0.550 ± 0.071" in eeg  # of EEG there is one score


def grid(rng: np.random.Generator, gain: float) -> list[dict[str, Any]]:
    """Ten variants over three seeds: an effect of each seed, noise of 0.01, and ``gain`` for the last variant."""
    of_seed = rng.normal(size=3)
    return [
        {"variant": f"v{v}", "seed": s, "scores": scores(of_seed[s] + 0.01 * rng.normal() + gain * (v == 9))}
        for v in range(10)
        for s in range(3)
    ]


def test_what_is_told_apart_is_judged_by_all_variants_together() -> None:
    rng, order = np.random.default_rng(0), [f"v{v}" for v in range(10)]

    def starred(gain: float) -> set[str]:
        shown = markdown(summarise(grid(rng, gain), order, "v0"), "v0").split("\n\n")[3]
        return {line.split()[1] for line in shown.splitlines()[2:-1] if "*" in line.split("|")[3]}

    # Without any difference, a grid has a star in its column in at most one of twenty cases; a difference is found.
    assert sum(bool(starred(0.0)) for _ in range(200)) / 200 < 0.09
    found = [starred(0.05) for _ in range(50)]
    assert sum("v9" in names for names in found) > 45 and sum(len(names - {"v9"}) > 0 for names in found) < 7
    # One run short: no star, and the others are judged without it.
    short = [r for r in grid(rng, 5.0) if (r["variant"], r["seed"]) != ("v9", 2)]
    assert "*" not in markdown(summarise(short, order, "v0"), "v0").split("\n\n")[3].splitlines()[-2]


def test_a_result_file_is_shown_again(tmp_path: Path) -> None:
    rows = summarise([{"variant": "base", "seed": 0, "scores": scores(0.7)}], ["base"], "base")
    file = tmp_path / "ablation.json"
    file.write_text(json.dumps({"config": {"base": "base"}, "table": rows}))
    command = [sys.executable, "-m", "benchmarks.ablation", "--table"]
    shown = subprocess.run([*command, str(file)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == markdown(rows, "base")
    refused = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --table: expected one ablation.json")


def test_a_grid_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for changes, message in (
        ({"base": "gone"}, "base=gone: expected one of the variants"),
        ({"variants": {"base": ["objective.alpah=0"]}}, "unknown key 'objective.alpah'"),
        ({"variants": {"base": [], "a/b": []}}, "names become folders"),
        ({"only": "base/7"}, "only=base/7: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, tmp_path, **changes)


@pytest.mark.parametrize("name", ["fmri.yaml", "fmri-short.yaml", "paired.yaml", "paired-short.yaml"])
def test_the_committed_grids_name_what_exists(name: str, tmp_path: Path) -> None:
    path = ROOT / "configs" / "ablate" / name
    found = AblateConfig.load(path, [f"corpus_dir={tmp_path}", f"out_dir={tmp_path}"])
    assert found.base in found.variants and len(found.variants) > 5


@pytest.mark.slow
def test_a_failing_variant_costs_itself_alone_and_the_rest_is_kept(corpus_dir: Path, tmp_path: Path) -> None:
    asked = config(tmp_path, corpus_dir, few_label_draws=1, windows_per_recording=2)
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps(asked.dump()))
    command = [sys.executable, "-m", "benchmarks.ablation", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 1, done.stderr
    assert "bad/0: failed (status 2)" in done.stderr and "Traceback" not in done.stderr
    assert "init_from=nowhere" in (tmp_path / "bad" / "0" / "log.txt").read_text()
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["variant"] for row in content["table"]] == ["base", UNTRAINED] and content["failed"] == ["bad/0"]
    (run,) = content["runs"]
    trained = run["scores"]["trained"]
    assert 0 <= trained["auroc"] <= 1 and trained["retrieval"] is not None
    # With two modalities each is scored alone as well, and sites pooled beside the mean over them.
    assert all(
        0 <= trained[f"auroc_{kind}{m}"] <= 1 for kind in ("learned", "learned_pooled") for m in ("_eeg", "_fmri")
    )
    assert str(tmp_path) not in json.dumps(content) and str(corpus_dir) not in json.dumps(content)
    (maker,) = content["made_by"]
    assert maker["hardware"]["cores"] > 0 and maker["versions"]["torch"] and content["base"]["steps"] == 1
    assert content["corpus"]["index_hash"] == Corpus(corpus_dir).index_hash
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    assert not (tmp_path / "base" / "0" / "run" / "checkpoints").exists()
    before = (tmp_path / "base" / "0" / "result.json").stat().st_mtime_ns
    again = subprocess.run([*command, "variants={base: ['model.domains=[spectral]']}"], capture_output=True, text=True,
                           cwd=ROOT, timeout=500)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "base" / "0" / "result.json").stat().st_mtime_ns == before
