"""Settings as options: a command gets every key of its schema as ``--key value``, ``key=value`` or from a YAML file."""

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mcsp.config.base import Config

# Folders that a key or an argument may name: the file that has to be in it, and what it is.
PLACES = {
    "model_dir": ("config.json", "an exported model"),
    "corpus_dir": ("index.json", "a finished corpus"),
    "classifier_dir": ("classifier.json", "a classifier of mcsp finetune or evaluate"),
    "finetuned_dir": ("classifier/classifier.json", "the results of mcsp finetune"),
    "bids_root": ("", "a BIDS dataset or a folder of some"),
    "run_dir": ("metrics.jsonl", "a pretraining run"),
}


def takes(model: type[Config], places: Sequence[str] = ()) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the keys of ``model`` as options; it is called with the loaded settings and its own options.

    Values are YAML, judged by the schema alone. ``--config FILE`` holds any of them, and is looked for among the files
    that come with the package too; ``--print-config`` shows what they come to.

    Args:
        model: the schema.
        places: keys whose folders must be there, of :data:`PLACES`; checked before the command imports anything.
    """

    def decorated(command: Callable[..., int]) -> Callable[..., int]:
        """The command with the keys in its signature, as the parser sees them."""
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        def with_settings(*pairs: str, **options: Any) -> int:
            """Load the settings, then run the command or show them."""
            config, print_config = options.pop("config", None), options.pop("print_config", False)
            extras = {p.name: options.pop(p.name) for p in own if p.name in options}
            twice = [key for key in options if any(pair.startswith(f"{key}=") for pair in pairs)]
            if twice:
                raise ValueError(f"{twice[0]}: given as --{twice[0]} and as {twice[0]}=, expected one of them")
            loaded = model.load(config, [*pairs, *(f"{key}={text}" for key, text in options.items())])
            if print_config:
                print(yaml.safe_dump(loaded.dump(), sort_keys=False), end="")
                return 0
            for name in places:
                require_place(getattr(loaded, name), name)
            return command(loaded, **extras)

        with_settings.__doc__, with_settings.__name__ = command.__doc__, command.__name__
        with_settings.__module__ = command.__module__
        parameters = [*_of_file(), *own, *options_of(model)]
        with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return with_settings

    return decorated


def require_place(place: Path | str | None, kind: str) -> None:
    """Raise ``ValueError`` where a local folder is not what ``kind``, of :data:`PLACES`, says; None passes."""
    file, what = PLACES[kind]
    if place is None or "://" in str(place):
        return
    if not (Path(place) / file).exists():
        why = f"found none ({file} is missing)" if Path(place).is_dir() else "found no such folder"
        raise ValueError(f"{place}: expected {what}, {why}")


def options_of(model: type[Config]) -> list[inspect.Parameter]:
    """One option per key, those of a section in a group of their own; its value arrives as the text that was typed."""
    found = []
    for key, field, section in keys_of(model):
        kind, choices = kind_of(field)
        parameter = Parameter(
            name=f"--{key}", help=f"{field.description} [{default_of(field)}]",
            group=Group(section or "Settings", sort_key=2 if section else 1), metavar=kind, choices=choices,
            converter=_text, n_tokens=1, show_default=False,
        )  # fmt: skip
        annotation = Annotated[Path | None, parameter] if kind == "PATH" else Annotated[str | None, parameter]
        name = key.replace(".", "__")
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return found


def _of_file() -> list[inspect.Parameter]:
    kind = inspect.Parameter
    pairs = Annotated[str, Parameter(name="KEY=VALUE", help="values of keys, also as section.key=value")]
    file = Annotated[Path | None, Parameter(help="YAML file with values that differ from the defaults")]
    shown = Annotated[bool, Parameter(help="print the resolved settings, and end")]
    return [
        kind("key_value", kind.VAR_POSITIONAL, annotation=pairs),
        kind("config", kind.KEYWORD_ONLY, default=None, annotation=file),
        kind("print_config", kind.KEYWORD_ONLY, default=False, annotation=shown),
    ]


def _text(annotation: Any, tokens: Sequence[Any]) -> str:
    text: str = tokens[0].value
    return text


def keys_of(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """Key, field and section of everything that can be set; the keys of a mapping with known ones stand beside it."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys_of(annotation, f"{section}{name}.")
        else:
            yield f"{section}{name}", field, section.rstrip(".")


def kind_of(field: FieldInfo) -> tuple[str, tuple[str, ...] | None]:
    """What the help calls a value, and the choices that the shell completes."""
    parts = [part for part in _alternatives(field.annotation) if part is not type(None)]
    if len(parts) == 1 and get_origin(parts[0]) is Literal:
        return "CHOICE", tuple(map(str, get_args(parts[0])))
    if parts == [bool]:
        return "CHOICE", ("true", "false")
    if Path in parts:
        return "PATH", None
    names = {int: "INT", float: "NUMBER", str: "TEXT"}
    return names.get(parts[0], "YAML") if len(parts) == 1 else "YAML", None


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for choice in get_args(annotation) for part in _alternatives(choice)]
    return [annotation]


def default_of(field: FieldInfo) -> str:
    """The default as it may be typed on the command line."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("...").strip()
