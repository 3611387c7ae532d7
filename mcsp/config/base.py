"""Configuration: pydantic models are the schema, YAML the values, ``--config FILE key.sub=value`` the command line.

A YAML file holds only what differs from the defaults below. Unknown keys are refused with the list of known ones.
Numbers without a source beside them are choices of ours.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator


def _in_home(path: Any) -> Any:
    known = path is not None and str(path).startswith("~")
    return type(path)(os.path.expanduser(path)) if known else path


# The shell leaves the ~ of key=~/folder as it is.
UserPath = Annotated[Path, AfterValidator(_in_home)]
UserPathOrUrl = Annotated[Path | str, AfterValidator(_in_home)]


class Config(BaseModel):
    """Frozen values, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """A mapping keeps the defaults that it does not name: ``window_seconds.eeg=4`` leaves fMRI as it was."""
        for name, known in cls.model_fields.items():
            if isinstance(values, dict) and isinstance(known.default, dict) and isinstance(values.get(name), dict):
                values = {**values, name: {**known.default, **values[name]}}
        return values

    @classmethod
    def parse(cls, values: dict[str, Any], source: str) -> Self:
        """Validate ``values``; raise ``ValueError`` with one line that names ``source`` and what was expected."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{source}: " + "; ".join(_explain(cls, e) for e in error.errors())) from None

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file (or only the defaults) and apply ``key.sub=value`` overrides, values in YAML syntax."""
        values: Any = {}
        if path is not None:
            try:
                values = yaml.safe_load(Path(path).read_text()) or {}
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
        return f"{where or 'config'}: {error['msg']} (found {error.get('input')!r:.80})"
    known: type[BaseModel] = model
    for part in error["loc"][:-1]:
        annotation = known.model_fields[part].annotation if part in known.model_fields else None
        arguments = [annotation, *getattr(annotation, "__args__", ())]
        known = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), known)
    return f"unknown key {where!r}; known keys: {', '.join(sorted(known.model_fields))}"


def _help_lines(model: type[BaseModel], section: str = "") -> list[str]:
    """A line per key: what it is, what it may be, its default; the keys of a section below it."""
    lines = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _help_lines(field.annotation, f"{section}{name}.")
            continue
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        parts = [field.description or "", f"one of {', '.join(map(str, choices))}" if choices else ""]
        default = "required" if field.is_required() else _yaml_text(field.get_default(call_default_factory=True))
        lines.append(f"  {section}{name}: {'; '.join(filter(None, parts))}".rstrip() + f" [{default}]")
    return lines


def _yaml_text(value: Any) -> str:
    """A value as it may be typed on the command line."""
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("...").strip()


def parse_command_line(
    model: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    address: bool = False,
    check: bool = False,
) -> tuple[Any, argparse.Namespace]:
    """``--config FILE key=value ...``: the whole command line of every launcher that has a config.

    With ``address`` also ``--address``, for the one that may run on a Ray cluster; with ``check`` also ``--check``.

    Exits with status 2 and one line on bad input.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog="keys, and their defaults:\n" + "\n".join(_help_lines(model)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file with the values that differ from the defaults")
    if address:
        parser.add_argument("--address", help="address of a running Ray cluster")
    if check:
        parser.add_argument("--check", action="store_true", help="say what a run would need, and end without a trace")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # added by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that take precedence over the file")
    arguments = parser.parse_intermixed_args(argv)  # a flag may stand between values
    try:
        return model.load(arguments.config, arguments.overrides), arguments
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
