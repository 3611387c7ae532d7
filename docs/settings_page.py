"""Writes the page of all settings from their help texts; the site's configuration calls it before each build."""

from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mcsp.config import CorpusConfig, EvaluateConfig, ExplainConfig, FinetuneConfig, PretrainConfig

VERBS = {
    "build": CorpusConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    "explain": ExplainConfig,
}
HEAD = """# Settings

Every command takes its settings from a YAML file (`--config FILE`) and from the command line (`key=value` or
`--key value`); the command line wins. `--help` prints these texts too.
"""


def type_name(annotation: Any) -> str:
    """A type as a reader writes its value: whole number, true or false, one of ..."""
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(type_name(part) for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) in (dict, list, tuple):
        return "mapping" if get_origin(annotation) is dict else "list"
    return getattr(annotation, "__name__", str(annotation))


def default_of(field: FieldInfo) -> str:
    """The default as it stands in a YAML file."""
    if field.is_required():
        return "(needed)"
    value = field.get_default(call_default_factory=True)
    value = value.value if isinstance(value, Enum) else value
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"`{value}`" if str(value) else "(empty)"


def rows(model: type[BaseModel], before: str = "") -> list[str]:
    """A row of the table for each setting, those of a part of the settings with its name before."""
    found = []
    for name, field in model.model_fields.items():
        parts = [p for p in (field.annotation, *get_args(field.annotation)) if isinstance(p, type)]
        inner = next((p for p in parts if issubclass(p, BaseModel)), None)
        if inner is not None and field.annotation is inner:
            found += rows(inner, f"{before}{name}.")
            continue
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        found.append(f"| `{before}{name}` | {type_name(field.annotation)} | {default_of(field)} | {text} |")
    return found


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for verb, model in VERBS.items():
        parts.append(f"## mcsp {verb}\n\n| setting | type | default | what it does |\n|---|---|---|---|")
        parts.append("\n".join(rows(model)) + "\n")
    return "\n".join(parts)
