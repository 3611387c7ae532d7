"""Exports: the round trip is exact, loading needs only the core dependencies, damaged folders get one clear line.

Covers: mcsp/model/weights.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mcsp
from mcsp.config import ModelConfig
from mcsp.encode.pretrained import from_pretrained
from mcsp.export.export import fixed_signals
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained, write_sums

PREPROCESSING = {"units": {"eeg": "uV"}, "window_seconds": {"eeg": 10.0, "fmri": 30.0}}


@pytest.fixture(scope="module")
def model() -> MCSP:
    torch.manual_seed(3)
    return MCSP(ModelConfig()).eval()


@pytest.fixture
def export(model: MCSP, tmp_path: Path) -> Path:
    write_pretrained(model, tmp_path / "export", PREPROCESSING)
    return tmp_path / "export"


def test_round_trip_is_exact(model: MCSP, export: Path) -> None:
    loaded = mcsp.from_pretrained(export)
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in loaded.state_dict().items())
    signals = fixed_signals(model.config.modalities)
    with torch.inference_mode():
        expected, found = model.features(signals), loaded.features(signals)
        for modality in signals:
            assert torch.equal(expected[modality], found[modality])
            for domain, h_BD in loaded.encode(signals)[modality].items():
                z_BK = loaded.project(modality, domain, h_BD)
                assert torch.equal(z_BK, model.project(modality, domain, h_BD))


def test_loading_leaves_the_callers_random_state_alone(export: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    from_pretrained(export)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_an_export_of_one_modality_loads(modality: str, tmp_path: Path) -> None:
    write_pretrained(MCSP(ModelConfig(modalities=(modality,))), tmp_path / "one", PREPROCESSING)
    assert from_pretrained(tmp_path / "one").config.modalities == (modality,)


# None in sys.modules is Python's own mark of a package that is not there: imports fail and find_spec finds nothing.
# A build of torch with CUDA looks for Triton when it is imported, and has to see that.
BLOCKED = """
import sys

absent = ["triton", "deepspeed", "ray", "mne", "nibabel", "nilearn", "sklearn", "pandas", "scipy", "webdataset",
          "pyarrow", "matplotlib", "tqdm", "tensorboard"]
sys.modules.update(dict.fromkeys(absent))
import mcsp
assert "torch" not in sys.modules
model = mcsp.from_pretrained(sys.argv[1])
import torch
from mcsp.batch import Signal
signal = Signal(torch.randn(1, 4, 400), torch.tensor([200.0]), torch.ones(1, 4, dtype=torch.bool),
                torch.ones(1, 400, dtype=torch.bool), 50 * torch.randn(1, 4, 3), torch.ones(1, 4, dtype=torch.bool),
                torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
with torch.inference_mode():
    features = model.features({"eeg": signal})["eeg"]
assert torch.isfinite(features).all()
print("features", tuple(features.shape))
"""


def test_loading_and_encoding_need_only_the_core_dependencies(export: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED, str(export)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("features (1, ")


def rewrite_config(export: Path, **changes: object) -> None:
    """Change config.json and make the digests fit, so that only the content is wrong."""
    header = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**header, **changes}))
    write_sums(export)


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an exported model, a folder with config\.json"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        from_pretrained(tmp_path / "nowhere")


def test_another_format_version(export: Path) -> None:
    rewrite_config(export, format_version=99)
    with pytest.raises(ValueError, match=r"config\.json: expected format_version 3, found 99; export"):
        from_pretrained(export)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessing.json", "SHA256SUMS"])
def test_a_missing_file_is_named(export: Path, name: str) -> None:
    (export / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        from_pretrained(export)


@pytest.mark.parametrize("offset", [-1, 5000])
def test_one_flipped_bit_of_the_weights_is_found(export: Path, offset: int) -> None:
    content = bytearray((export / "model.safetensors").read_bytes())
    content[offset] ^= 1
    (export / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or changed"):
        from_pretrained(export)


def test_weights_that_are_not_safetensors(export: Path) -> None:
    (export / "model.safetensors").write_bytes(b"not weights")
    write_sums(export)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        from_pretrained(export)


def test_weights_of_another_configuration_name_what_differs(export: Path) -> None:
    values = ModelConfig().dump()
    rewrite_config(export, model={**values, "modalities": ["eeg"]})
    with pytest.raises(ValueError, match=r"expected \d+ tensors, found \d+; missing none, unknown encoders\.fmri"):
        from_pretrained(export)
    rewrite_config(export, model={**values, "projection_dim": 64})
    with pytest.raises(ValueError, match=r"found shapes projections\.\S+ \(128,\) instead of \(64,\)"):
        from_pretrained(export)


def test_an_unknown_key_of_the_architecture_is_one_line(export: Path) -> None:
    rewrite_config(export, model={"width": 7})
    with pytest.raises(ValueError, match=r"config\.json: unknown key 'width'") as error:
        from_pretrained(export)
    assert "\n" not in str(error.value)
