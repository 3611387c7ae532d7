"""Configuration: pydantic models are the schema, YAML files hold values, ``key.sub=value`` overrides them.

A YAML file holds only what differs from the defaults below. Unknown keys are refused with the list of known ones.
Numbers without a source beside them are choices of ours. The command line is :mod:`mcsp.commands.settings`.
"""

import difflib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

# A length in time.
Seconds = Annotated[float, Field(gt=0)]


def find_config(path: str | Path) -> Path:
    """``path`` where it is there; else the file of this name that comes with the package, else ``path``.

    ``configs/pretrain/demo.yaml`` and ``pretrain/demo.yaml`` are found from any folder: in the installed package, or
    beside it in a checkout.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    below = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    package = Path(str(files("mcsp")))
    places = [root.joinpath("configs", *below) for root in (package, package.parent)]
    return next((place for place in places if place.is_file()), path)


class Config(BaseModel):
    """Frozen values, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """A mapping keeps the defaults that it does not name: ``window_seconds.eeg=4`` leaves fMRI as it was."""
        for name, known in cls.model_fields.items():
            if isinstance(values, dict) and isinstance(known.default, dict) and isinstance(values.get(name), dict):
                values = {**values, name: {**known.default, **values[name]}}
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _in_home(cls, value: Any, info: ValidationInfo) -> Any:
        """``~`` at the start of a path: a YAML file and many shells leave it as it is."""
        assert info.field_name is not None
        if Path not in _kinds(cls.model_fields[info.field_name].annotation):
            return value
        paths = [os.path.expanduser(v) if isinstance(v, str | Path) else v for v in _listed(value)]
        return paths if isinstance(value, list | tuple) else paths[0]

    @classmethod
    def parse(cls, values: dict[str, Any], source: str) -> Self:
        """Validate ``values``; raise ``ValueError`` with one line that names ``source`` and what was expected."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # it may be what is missing
            raise ValueError(f"{source}: " + "; ".join(_explain(cls, e) for e in found)) from None

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file (or only the defaults) and apply ``key.sub=value`` overrides, values in YAML syntax."""
        values: Any = {}
        if path is not None:
            path = find_config(path)
            try:
                values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            except OSError as error:
                raise ValueError(f"{path}: cannot read the config file ({error.strerror})") from None
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
            if not isinstance(values, dict):
                raise ValueError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals:
                raise ValueError(f"override {override!r}: expected key=value or key.sub=value")
            try:
                _set(values, key.split("."), _value(value), override)
            except yaml.YAMLError as error:
                raise ValueError(f"override {override!r}: not valid YAML ({' '.join(str(error).split())})") from None
        return cls.parse(values, str(path) if path is not None else "command line")

    def dump(self) -> dict[str, Any]:
        """The resolved values as plain JSON types."""
        return self.model_dump(mode="json")

    def as_words(self) -> list[str]:
        """All values as ``key=value``, of which :meth:`load` makes the same."""
        # YAML does not put the two halves together by which JSON escapes an emoji.
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.dump().items()]

    def published(self) -> dict[str, Any]:
        """As :meth:`dump`, for files that leave the machine: of folders and files the last name alone."""
        named: dict[str, Any] = _without_folders(self.model_dump())
        return named


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    return [annotation] + [kind for part in get_args(annotation) for kind in _kinds(part)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    is_place = isinstance(value, os.PathLike) or (isinstance(value, str) and "://" in value)
    return str(value).rstrip("/").rpartition("/")[2] if is_place else value


def _value(text: str) -> Any:
    """YAML, but nobody types a comment on a command line: in ``run_dir=run #2`` the # belongs to the name."""
    plain = not text.lstrip().startswith(("'", '"', "[", "{"))
    return text if plain and " #" in text else yaml.safe_load(text)


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {key!r} holds a value, not a section")
    values[keys[-1]] = value


def _explain(model: type[BaseModel], error: Any) -> str:
    """One clause for one pydantic error, with the known keys where a key is unknown."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{where}: expected a value, found none"
    if error["type"] != "extra_forbidden":
        told = error["msg"].removeprefix("Value error, ")  # of a check of ours, which may say what it found
        found = "" if "found" in told or not where else f" (found {error.get('input')!r:.80})"
        return f"{where}{': ' if where else ''}{told}{found}"
    known: type[BaseModel] = model
    for part in error["loc"][:-1]:
        annotation = known.model_fields[part].annotation if part in known.model_fields else None
        arguments = [annotation, *getattr(annotation, "__args__", ())]
        known = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), known)
    close = difflib.get_close_matches(str(error["loc"][-1]), known.model_fields, 1)
    meant = [".".join([*map(str, error["loc"][:-1]), name]) for name in close]
    suggestion = f"did you mean {meant[0]!r}? " if meant else ""
    return f"unknown key {where!r}; {suggestion}known keys: {', '.join(sorted(known.model_fields))}"
