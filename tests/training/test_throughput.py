"""Where the time of a step goes, what a run says of its speed, and its pictures.

Covers: mcsp/training/clock.py, mcsp/commands/plot.py
"""

import json
import time
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from mcsp.commands.main import run
from mcsp.commands.plot import draw
from mcsp.config import ModelConfig, PretrainConfig
from mcsp.run_log import read_events, read_metrics
from mcsp.training import throughput
from mcsp.training.clock import SPLIT, Profile
from mcsp.training.metrics import BAR, Metrics, brief, progress
from mcsp.training.throughput import Throughput, goodput, window_flops


def test_operations_are_those_counted_by_hand() -> None:
    config = ModelConfig(size="nano", modalities=("fmri",), domains=("temporal",))
    channels, width, depth, features, anchors, bins, narrow, projection = 10, 96, 2, 8, 100, 12, 12, 128
    patch, patches = 4, 14  # 30 volumes of 2 s span 58 s: 59 samples on a grid of 1 Hz, 14 whole patches of 4

    def linear(rows: int, inputs: int, outputs: int, of_data: bool = False) -> int:
        """Forward, gradient of the weights and, unless it reads the data, of its input."""
        return 2 * rows * inputs * outputs * (2 if of_data else 3)

    block = linear(patches, width, 3 * width) + linear(patches, width, width)
    block += linear(patches, width, 4 * width) + linear(patches, 4 * width, width)
    block += 2 * 2 * patches**2 * width * 3  # scores and mixing
    by_hand = linear(channels * patches, patch, features, True) + linear(channels, 1, features, True)
    by_hand += 2 * anchors * channels * patches * features * 2  # to the anchors; their weights are fixed
    by_hand += linear(patches, anchors * features, width) + depth * block
    by_hand += 2 * bins * patches * width * 2  # into time bins, fixed weights
    by_hand += linear(bins, width, narrow) + linear(1, bins * narrow, width)
    by_hand += linear(1, width, width) + linear(1, width, projection)
    assert window_flops(config, {"fmri": (channels, 30)}, {"fmri": 0.5}) == {"fmri": by_hand}


def test_counting_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    window_flops(ModelConfig(modalities=("fmri",), domains=("spatial",)), {"fmri": (4, 30)}, {"fmri": 0.5})
    assert torch.equal(torch.get_rng_state(), state)


def test_utilisation_is_claimed_for_known_devices_only(monkeypatch) -> None:
    assert throughput.peak_tflops(torch.device("cpu")) is None
    known = {
        "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756.0, "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA L4": 121.0, "NVIDIA L40S": 362.1, "NVIDIA L40": None, "NVIDIA A10": 125.0, "NVIDIA A10G": None,
    }  # fmt: skip
    for name, peak in known.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert throughput.peak_tflops(torch.device("cuda", 0)) == peak, name


def test_speeds_of_a_step() -> None:
    config = PretrainConfig.load(
        None, ["corpus_dir=c", "run_dir=r", "batch={paired: 4, eeg: 2, fmri: 0}", "window_seconds={eeg: 10, fmri: 60}"]
    )
    shapes = {"eeg": (8, 2000), "fmri": (10, 30)}
    speeds = Throughput(config, shapes, 2, torch.device("cpu")).values(0.5)
    assert speeds["samples_per_second"] == 12
    assert speeds["signal_hours_per_second/eeg"] == pytest.approx(6 * 10 / 3600 / 0.5)
    assert speeds["signal_hours_per_second/fmri"] == pytest.approx(4 * 60 / 3600 / 0.5)
    flops = window_flops(config.model, shapes, {"eeg": 200.0, "fmri": 0.5})
    assert speeds["tflops"] == pytest.approx((6 * flops["eeg"] + 4 * flops["fmri"]) * 2 / 2 / 0.5 / 1e12)
    assert "mfu" not in speeds and 0.05 < speeds["memory_gib"] < 64


def values(step: int, **more: float) -> dict[str, float]:
    line = {"loss": 20 - step / 10, "gradient_norm": 3.0, "learning_rate": 1e-3, "samples_per_second": 50.0}
    line |= {"loss/eeg/spatial": 2.0, "top1/fmri-eeg/spatial": step / 100, "temperature/eeg/spatial": 0.1}
    line |= {f"seconds/{name}": 0.1 for name in SPLIT} | {"seconds_per_step": 0.6, "goodput": 0.9}
    line |= {"tflops": 0.02, "memory_gib": 1.5 + step / 1000}
    return line | {"data_wait_fraction": 0.05, "skipped_steps": 0.0} | more


def test_goodput_stays_a_share_when_the_clock_is_set_back() -> None:
    now, began = time.time(), time.monotonic()
    assert goodput(30.0, now - 60, began - 50) == pytest.approx(0.5, abs=0.01)
    assert goodput(30.0, now + 3600, began - 40) == pytest.approx(0.75, abs=0.01)
    assert goodput(30.0, now + 3600, began) == 1.0
    assert goodput(0.0, now + 3600, began) == 0.0


def test_metrics_forget_what_is_taken_again_and_events_do_not(tmp_path, capsys) -> None:
    metrics = Metrics(tmp_path, 0, 100)
    metrics.event("start", 0, ranks=2)
    for step in range(1, 61):
        metrics.write(step, values(step, **({"loss": float("nan")} if step == 50 else {})))
    metrics.event("skip", 50, because="loss is nan", data=49)
    metrics.event("rollback", 40, because="3 steps in a row were skipped")
    metrics.rewind(40)
    metrics.write(41, values(41))
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 42))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 42, "lo')  # killed while writing
    again = Metrics(tmp_path, 30, 100)
    again.event("start", 30, ranks=2)
    again.write(31, values(31, loss=float("inf")))
    again.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 31 and json.loads(lines[-1])["loss"] is None
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "skip", "rollback", "start"]
    assert "rollback at step 40: because 3 steps in a row were skipped" in capsys.readouterr().err
    told = "loss 19.300, top-1 0.07, lr 1.0e-03, norm 3, 50 samples/s, data wait 5 %"
    assert progress(values(7), {}) == told
    assert progress(values(7), values(1)) == told.replace("0.07", "0.07 (0.01 untrained)")


def test_the_progress_bar_fits_eighty_columns() -> None:
    now = brief(values(7, loss=12345.678, samples_per_second=123456.0))
    assert now == "loss 1.235e+04, top-1 0.07, 123456 samples/s"
    bar = tqdm.format_meter(199_999, 200_000, 36e6, prefix="pretrain", bar_format=BAR, postfix=now)
    assert len(bar) <= 88 and bar.startswith("pretrain 199999/200000 [")
    usual = tqdm.format_meter(1200, 20_000, 3600, prefix="pretrain", bar_format=BAR, postfix=brief(values(7)))
    assert usual == "pretrain 1200/20000 [15:40:00 left, loss 19.3, top-1 0.07, 50 samples/s]" and len(usual) < 80


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Names in the legends of a run's picture, and the other words in its panels."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw(folder, read_metrics(folder), read_events(folder), folder / "run.png")
    axes = plt.gcf().axes
    legends = [text.get_text() for panel in axes if panel.get_legend() for text in panel.get_legend().get_texts()]
    notes = [text.get_text() for panel in axes for text in panel.texts]
    monkeypatch.undo()
    plt.close("all")
    return legends, notes


def test_every_kind_of_term_is_drawn_with_people_set_aside_and_chance(tmp_path, monkeypatch) -> None:
    terms = {
        "eeg/spatial": "two views", "eeg/spatial-temporal": "two domains", "fmri-eeg/spatial": "two modalities",
        "distillation/fmri-eeg/spatial": "distillation", "convergence/fmri-eeg/spatial": "convergence",
        "prediction/eeg/spatial-connectivity": "prediction", "something/new/here": "something",
    }  # fmt: skip
    measured = {"half_error/eeg/spatial": 0.7, "identification/eeg/spatial": 0.5, "site_h/eeg/spatial": 0.4}
    metrics = Metrics(tmp_path, 0, 20)
    metrics.event("start", 0, ranks=2)
    for step in range(1, 21):
        line = {f"loss/{name}": 1.0 for name in terms}
        if step in (1, 20):
            aside = {**{f"loss/{name}": 0.9 for name in terms}, "loss": 7.0, "people/eeg": 16.0, **measured}
            line |= {f"validation/{name}": value for name, value in aside.items()}
        metrics.write(step, values(step, **line))
    metrics.close()
    (tmp_path / "config.json").write_text(json.dumps({"batch": {"paired": 8, "eeg": 4, "fmri": 0}}))
    legends, notes = drawn(tmp_path, monkeypatch)
    for kind in terms.values():
        assert f"{kind} (1)" in legends
    assert legends.count("marks: people set aside") >= 2
    assert {"chance among 8", "chance among 12", "chance, 16 people with eeg", "mean over people"} <= set(notes)


def test_a_run_is_drawn_with_its_events(tmp_path, capsys) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    metrics = Metrics(tmp_path, 0, 100)
    for step in (0, 30):
        metrics.event("start", step, ranks=2)
    metrics.event("skip", 50, because="loss is nan", data=49)
    for step in range(1, 101):
        metrics.write(
            step,
            values(
                step, mfu=float("nan"), **(dict.fromkeys(("loss", "gradient_norm"), float("nan")) if step == 50 else {})
            ),
        )
    metrics.close()
    assert run(["plot", str(tmp_path)]) == 0
    pixels = matplotlib_image.imread(tmp_path / "run.png")
    assert pixels.shape[0] > 1000 and pixels.std() > 0.05
    assert run(["plot", str(tmp_path / "none")]) == 2
    assert "expected a pretraining run with metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (2000, 2010), (95, 101)])
def test_a_trace_of_steps_that_the_run_does_not_have_is_refused(tmp_path, steps: tuple[int, int]) -> None:
    """There was no trace, and nobody said so."""
    with pytest.raises(ValueError, match=rf"profile_steps: .*of steps 1 to 100, found \[{steps[0]}, {steps[1]}\]"):
        Profile(tmp_path, 0, steps, 100)
    assert Profile(tmp_path, 0, (1, 100), 100).steps == (1, 100) and Profile(tmp_path, 0, None, 1).steps is None
