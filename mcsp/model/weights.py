"""The folder that holds exported weights: written, checked and loaded with torch and safetensors alone.

An export holds::

    config.json          format version and the ModelConfig
    model.safetensors    float32 or bfloat16 weights under the names of MCSP.state_dict()
    preprocessing.json   what a recording has to go through before it fits the weights: units, filters, rates
    SHA256SUMS           digests in the format of sha256sum, so that `sha256sum -c SHA256SUMS` works too

Nothing here unpickles.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcsp.config import ModelConfig
from mcsp.model.mcsp import MCSP
from mcsp.output import whole_file, write_whole
from mcsp.outside import read_bounded, read_object, sha256_file
from mcsp.version import __version__
from mcsp.wording import listed

SUBJECTS_FILE = "pretraining_subjects.txt"  # "site/subject" of everyone whose recordings were trained on
FORMAT_VERSION = 3  # 2: features without z; 1: h of the spatial domain was as narrow as the others
CONFIG_FILE, WEIGHTS_FILE, PREPROCESSING_FILE, SUMS_FILE = (
    "config.json",
    "model.safetensors",
    "preprocessing.json",
    "SHA256SUMS",
)


class ExportedMCSP(MCSP):
    """An :class:`MCSP` that knows how its inputs were prepared."""

    preprocessing: dict[str, Any]  # the content of preprocessing.json


Model = TypeVar("Model", bound=ExportedMCSP)


def load_export(path: str | Path, kind: type[Model]) -> Model:
    """An export as a model of class ``kind``, in evaluation mode, in float32 on the CPU, ``.preprocessing`` filled.

    Args:
        path: a folder that ``launchers/export.py`` or :func:`write_pretrained` wrote.
        kind: of the model; a class on top of :class:`ExportedMCSP` may add methods.

    Raises:
        ValueError: not an export, another format version, a missing, damaged or changed file, or weights whose names or
            shapes are not those of the configuration.
    """
    path = Path(path)
    if not (path / CONFIG_FILE).is_file():
        raise ValueError(f"{path}: expected an exported model, a folder with {CONFIG_FILE}; found none")
    header = read_object(path / CONFIG_FILE)
    found = header.get("format_version")
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path / CONFIG_FILE}: expected format_version {FORMAT_VERSION}, found {found}; "
            "export the checkpoint again with this version, or load it with the one that wrote it"
        )
    verify_sums(path, (CONFIG_FILE, WEIGHTS_FILE, PREPROCESSING_FILE))
    config = ModelConfig.parse(header.get("model", {}), str(path / CONFIG_FILE))
    try:
        _require_fitting_header(config, path / WEIGHTS_FILE)
        weights = load_file(path / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS_FILE}: not a safetensors file ({' '.join(str(error).split())})") from None
    with torch.random.fork_rng(devices=[]):  # building the model must not move the caller's random state
        model = kind(config)
    load_weights(model, {name: weight.float() for name, weight in weights.items()}, str(path / WEIGHTS_FILE))
    model.preprocessing = read_object(path / PREPROCESSING_FILE)
    return model.eval()


def write_pretrained(
    model: MCSP, out_dir: str | Path, preprocessing: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write ``model`` as an export into the folder ``out_dir``; the counterpart of :func:`load_export`.

    Args:
        model: any :class:`MCSP`.
        out_dir: the folder, which may exist.
        preprocessing: JSON types; comes back as ``.preprocessing``.
        dtype: that weights are stored in; loading makes them float32 again.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    header = {"format_version": FORMAT_VERSION, "mcsp_version": __version__, "model": model.config.dump()}
    write_whole(out_dir / CONFIG_FILE, json.dumps(header, indent=2) + "\n")
    write_whole(out_dir / PREPROCESSING_FILE, json.dumps(preprocessing, indent=2, sort_keys=True) + "\n")
    weights = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(out_dir / WEIGHTS_FILE, partial(save_file, weights, metadata={"format": "pt"}))
    write_sums(out_dir)


def write_tensors(path: Path, save: Callable[[Path], None]) -> None:
    """Write a safetensors file, readable for others as well; ``save`` writes it to the path that it is given."""
    with whole_file(path) as aside:
        try:
            save(aside)
        except SafetensorError as error:  # a full disk is one too
            raise OSError(f"{path}: cannot be written ({error})") from None
        aside.chmod(0o644)  # safetensors leaves it readable by its owner alone


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over every other file directly in ``folder``."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS_FILE)
    write_whole(folder / SUMS_FILE, "".join(f"{sha256_file(p)}  {p.name}\n" for p in files))


def read_sums(folder: Path) -> dict[str, str]:
    """Digest of each file that ``SHA256SUMS`` names."""
    lines = (line.split(maxsplit=1) for line in read_bounded(folder / SUMS_FILE).decode(errors="replace").splitlines())
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}


def load_weights(model: MCSP, weights: dict[str, Tensor], source: str) -> None:
    """Copy ``weights`` into ``model``.

    Raises:
        ValueError: names or shapes that differ, naming ``source`` and up to three of each kind.
    """
    _require_same(_shapes(model.state_dict()), _shapes(weights), source)
    model.load_state_dict(weights)


def _require_fitting_header(config: ModelConfig, file: Path) -> None:
    """Compare what the weights' file says of itself with a model that has no memory, before either takes any."""
    with torch.device("meta"):
        expected = _shapes(MCSP(config).state_dict())
    with safe_open(file, framework="pt") as weights:
        found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118  no mapping
        kinds = {weights.get_slice(name).get_dtype() for name in found}
    _require_same(expected, found, str(file))
    if unknown := kinds - {"F32", "BF16", "F16"}:
        raise ValueError(f"{file}: expected weights in F32, BF16 or F16, found {listed(sorted(unknown))}")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _require_same(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], source: str) -> None:
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{source}: weights do not match the configuration: expected {len(expected)} tensors, found {len(found)}; "
            f"missing {listed(missing, 3) or 'none'}, unknown {listed(unknown, 3) or 'none'}"
        )
    differing = [f"{n} {found[n]} instead of {expected[n]}" for n in sorted(expected) if found[n] != expected[n]]
    if differing:
        raise ValueError(
            f"{source}: weights do not match the configuration: found shapes {listed(differing, 3) or 'none'}"
        )


def verify_sums(path: Path, names: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless every named file exists and has the digest that SHA256SUMS gives it."""
    missing = [name for name in (*names, SUMS_FILE) if not (path / name).is_file()]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(names)} and {SUMS_FILE}, but {', '.join(missing)} is missing")
    digests = read_sums(path)
    for name in names:
        found = sha256_file(path / name)
        if digests.get(name) != found:
            raise ValueError(
                f"{path / name}: damaged or changed: {SUMS_FILE} has sha256 {digests.get(name, 'none')}, found {found}"
            )
