"""The flags of a configuration: names, types and defaults of its dataclasses, and what each is for,
from their docstrings. ``--help`` and docs/configuration.md both show them.
"""

import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

_KINDS = {
    Path: "path",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
}


@dataclass(frozen=True)
class Flag:
    """One flag: ``--critic.steps``, its type, its default as YAML, and what it is for."""

    name: str
    kind: str
    default: str
    meaning: str


def help_text(about: str, config: type, width: int | None = None) -> str:
    """What ``--help`` prints: the command's docstring, then its flags with their defaults.

    Args:
        about: The docstring.
        config: A dataclass.
        width: Of a line, in characters; the terminal's when left out.
    """
    width = width or min(100, shutil.get_terminal_size().columns)
    how = (
        "Flags, as --name=value, with their defaults; each is also a key of the YAML file that "
        "--config_path=FILE names, nested at its dots."
    )
    parts = [inspect.cleandoc(about), "", *textwrap.wrap(how, width), ""]
    for flag in flags_of(config):
        parts.append(f"  --{flag.name}={flag.default}  ({flag.kind})".replace("`", ""))
        indent = " " * 6
        meaning = flag.meaning.replace("\\|", "|")
        parts += textwrap.wrap(meaning, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(parts)


def flags_of(config: type, prefix: str = "", values: object = None) -> Iterator[Flag]:
    """The flags of a configuration, nested ones in their place.

    Args:
        config: A dataclass.
        prefix: Of the names, with its dot.
        values: The instance that stands as default of the field of this type, where there is one.
    """
    hints, said = typing.get_type_hints(config), meanings(config)
    for each in fields(config):
        kind = hints[each.name]
        default = _default(each) if values is None else getattr(values, each.name)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            nested = None if default is MISSING else default
            yield from flags_of(kind, f"{prefix}{each.name}.", nested)
            continue
        shown = "required" if default is MISSING else _yaml(default)
        yield Flag(prefix + each.name, _kind(kind), shown, said.get(each.name, ""))


def meanings(config: type) -> dict[str, str]:
    """What the docstrings say under ``Attributes``, of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        _, _, lines = text.partition("Attributes:\n")
        for entry in re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", lines, re.MULTILINE):
            meaning = " ".join(entry[1].split()).replace("``", "`").replace("|", "\\|")
            found[entry[0]] = meaning
    return found


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def _kind(kind: Any) -> str:
    """A type as a user would say it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if each is type(None) else _kind(each) for each in inner)
    if origin is typing.Literal:
        return " or ".join(f"`{each}`" for each in inner)
    if origin in (list, tuple):
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"{_kind(inner[0])} to {_kind(inner[1])}"
    if is_dataclass(kind):
        return "{" + ", ".join(each.name for each in fields(kind)) + "}"
    return _KINDS.get(kind, getattr(kind, "__name__", str(kind)))


def _yaml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(each) for each in value) + "]"
    if isinstance(value, Path):
        return value.as_posix()
    return str(value) if value != "" else "''"
