"""Configuration: files and overrides end in the values that were meant, and mistakes in one clear line.

Covers: mcsp/config/base.py, mcsp/config/corpus.py, mcsp/config/evaluate.py,
mcsp/config/model.py, mcsp/config/pretrain.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from benchmarks.ablation.settings import AblateConfig
from mcsp.config import Config, CorpusConfig, EvaluateConfig, ExplainConfig, FinetuneConfig, ModelConfig, PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS: dict[str, type[Config]] = {"corpus": CorpusConfig, "pretrain": PretrainConfig, "evaluate": EvaluateConfig}
FOLDERS: dict[str, list[str]] = {  # what every command line has to give
    "corpus": ["bids_root=bids", "out_dir=out"],
    "pretrain": ["corpus_dir=corpus", "run_dir=run"],
    "evaluate": ["model_dir=model", "corpus_dir=corpus", "out_dir=out"],
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


SHIPPED = [path for kind in MODELS for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_shipped_config_loads_and_its_values_arrive(path: Path) -> None:
    kind = path.parent.name
    config = MODELS[kind].load(path, FOLDERS[kind])
    default = MODELS[kind].load(None, FOLDERS[kind])
    folders = {override.split("=")[0] for override in FOLDERS[kind]}
    written = set(yaml.safe_load(path.read_text())) - folders
    assert {name for name in type(config).model_fields if getattr(config, name) != getattr(default, name)} <= written


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ablate").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_ablation_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # they name a file of pretraining beside them
    assert len(AblateConfig.load(path, ["corpus_dir=corpus", "out_dir=out"]).variants) > 1


def test_there_are_configs_for_all_launchers() -> None:
    assert {p.parent.name for p in (ROOT / "configs").glob("*/demo.yaml")} == set(MODELS)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/deepspeed").glob("*.json")), ids=lambda p: p.name)
def test_deepspeed_files_repeat_nothing_that_our_config_says(path: Path) -> None:
    ours = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    assert not (ours | {"bf16", "fp16", "optimizer", "scheduler"}) & set(json.loads(path.read_text()))


def test_overrides_take_precedence_and_reach_sections(tmp_path: Path) -> None:
    path = written(tmp_path, "corpus_dir: a\nrun_dir: b\nsteps: 5\nmodel: {size: small}\n")
    config = PretrainConfig.load(path, ["steps=7", "model.projection_dim=64", "batch.paired=4", "objective.beta=0.25"])
    assert (config.steps, config.model.projection_dim, config.batch.paired, config.objective.beta) == (7, 64, 4, 0.25)
    assert config.model.size == "small", "an override of one key of a section must keep the others of the file"
    assert config.batch.eeg == PretrainConfig.load(path).batch.eeg


def test_override_values_are_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, "bids_root: a\nout_dir: b\n")
    overrides = ["participants_columns=[age, sex]", "workers=null", "eeg.sfreq=100", "out_dir=x=y"]
    config = CorpusConfig.load(path, overrides)
    assert config.participants_columns == ["age", "sex"]
    assert config.workers is None
    assert config.eeg.sfreq == 100.0
    assert config.out_dir == Path("x=y")


def test_the_dump_is_json_and_loads_back_to_the_same_values() -> None:
    config = PretrainConfig.load(None, ["corpus_dir=a", "run_dir=b", "model.domains=[spatial, spectral]"])
    assert PretrainConfig.parse(json.loads(json.dumps(config.dump())), "dump") == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("setps: 3\n", ["unknown key 'setps'; did you mean 'steps'? known keys: ", "learning_rate"]),
        ("model: {szie: nano}\n", ["unknown key 'model.szie'", "size", "projection_dim"]),
        ("steps: many\n", ["steps", "integer", "'many'"]),
        ("- 1\n- 2\n", ["mapping", "list"]),
        ("steps: [3\n", ["not valid YAML"]),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r".") as caught:
        PretrainConfig.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("objective.temprature=1", ["'objective.temprature'; did you mean 'objective.temperature'?"]),
        ("steps=0", ["steps", "greater than or equal to 1", "0"]),
        ("model.size=giant", ["model.size", "'nano'", "'giant'"]),
        ("model.domains=[spatial, colour]", ["model.domains.1", "'spectral'", "'colour'"]),
        ("model.domains=[]", ["model.domains", "at least 1"]),
        ("steps", ["'steps'", "key=value"]),
        ("corpus_dir.more=1", ["'corpus_dir'", "not a section"]),
        ("steps=[", ["steps=[", "YAML"]),
    ],
)
def test_a_mistake_in_an_override_is_one_line(override: str, expected: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        PretrainConfig.load(None, ["corpus_dir=a", "run_dir=b", override])
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []


def test_the_file_is_named_also_when_it_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot read the config file \(No such file"):
        PretrainConfig.load(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(ValueError, match=r"binary\.yaml: "):
        PretrainConfig.load(binary)


def test_all_missing_and_unknown_keys_are_reported_at_once() -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        PretrainConfig.load(None, ["setps=3", "bacth.paired=3"])
    expected = ("corpus_dir: expected a value, found none", "run_dir", "'setps'", "'bacth'")
    assert all(part in str(caught.value) for part in expected)


def test_a_key_of_a_listed_site_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'sites\.berlin\.folder'; known keys: .*path"):
        CorpusConfig.load(None, ["out_dir=o", "sites={berlin: {path: b, folder: c}}"])


@pytest.mark.parametrize("fractions", ["[0.5, 0.1, 0.1]", "[1.2, -0.1, -0.1]"])
def test_split_fractions_sum_to_one(fractions: str) -> None:
    with pytest.raises(ValueError, match="split_fractions"):
        CorpusConfig.load(None, ["bids_root=b", "out_dir=o", f"split_fractions={fractions}"])


def test_a_corpus_needs_a_root_or_sites() -> None:
    with pytest.raises(ValueError, match="bids_root=DIR or a list of sites"):
        CorpusConfig.load(None, ["out_dir=o"])


def test_setting_one_modality_keeps_the_default_of_the_other() -> None:
    config = PretrainConfig.load(None, ["corpus_dir=a", "run_dir=b", "window_seconds.eeg=4"])
    default = PretrainConfig.load(None, ["corpus_dir=a", "run_dir=b"])
    assert config.window_seconds == {"eeg": 4.0, "fmri": default.window_seconds["fmri"]}


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("evaluate", "window_seconds.eeg=-5"), ("evaluate", "label_fractions=[0.5, 2]"),
        ("evaluate", "label_fractions=[.nan]"), ("pretrain", "window_seconds.fmri=0"),
        ("pretrain", "hemodynamic_delay_seconds=.nan"), ("pretrain", "learning_rate=.inf"),
        ("corpus", "min_seconds.eeg=-1"), ("corpus", "split_fractions=[.nan, .nan, .nan]"),
    ],
)  # fmt: skip
def test_numbers_that_no_run_can_use_are_refused_before_it(kind: str, override: str) -> None:
    with pytest.raises(ValueError, match=override.split("=")[0]):
        MODELS[kind].load(None, [*FOLDERS[kind], override])


def test_the_home_folder_is_meant_wherever_a_path_begins_with_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lab")
    for kind, model in MODELS.items():
        config = model.load(None, [pair.replace("=", "=~/", 1) for pair in FOLDERS[kind]])
        assert {str(getattr(config, pair.split("=")[0])).rpartition("/")[0] for pair in FOLDERS[kind]} == {"/home/lab"}
    values = {"trusted_link_targets": ["~/a", "/b"], "sites": {"s": {"path": "~/c"}}, "out_dir": "s3://b/~c"}
    corpus = CorpusConfig.parse({**values, "participants_columns": ["~x"]}, "test")
    assert corpus.trusted_link_targets == [Path("/home/lab/a"), Path("/b")]
    assert (corpus.sites["s"].path, corpus.out_dir) == (Path("/home/lab/c"), "s3://b/~c")
    assert corpus.participants_columns == ["~x"] and corpus.private_dir is None


def test_values_as_words_of_a_command_load_back_to_the_same() -> None:
    given = ["corpus_dir=\U0001f9e0 é #1", "run_dir='a: b'", "learning_rate=1.0e-07", "batch.eeg=0", "keep_best=loss"]
    config = PretrainConfig.load(None, given)
    assert PretrainConfig.load(None, config.as_words()) == config


def test_values_cannot_change_after_loading() -> None:
    config = ModelConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.size = "small"  # type: ignore[misc]


def settings(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of a schema and of the sections below it."""
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings(kind)


@pytest.mark.parametrize(
    "model", [CorpusConfig, PretrainConfig, EvaluateConfig, FinetuneConfig, ExplainConfig, AblateConfig]
)
def test_every_setting_has_a_help_text(model: type[BaseModel]) -> None:
    assert [name for name, field in settings(model) if not field.description] == []
