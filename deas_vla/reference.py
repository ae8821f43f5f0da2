"""Every flag of every command, as a page: docs/configuration.md, from the dataclasses themselves.

python -m deas_vla config-reference --output docs/configuration.md
"""

import ast
import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from deas_vla.errors import DeasError
from deas_vla.files import write_text
from deas_vla.flags import flags_of

# Commands of `python -m deas_vla`: where their `main` is, and their flags.
COMMANDS = {
    "doctor": ("deas_vla.doctor", "DoctorConfig"),
    "config-reference": ("deas_vla.reference", "ReferenceConfig"),
}
_ROOT = Path(__file__).parent.parent
_FIRST = "finetune_groot"
# Flags of what made the shipped nano checkpoint are of use to nobody else.
_LEFT_OUT = ("recipes/nano/",)
_HEAD = """# Configuration reference

Written by `python -m deas_vla config-reference --output docs/configuration.md` from the commands'
dataclasses; a test compares. Every flag is also a key of a YAML file, nested at its dots:
`--critic.steps=10` is `critic: {steps: 10}` of the file that `--config_path` names, and flags win
over the file. Lists and mappings are YAML too: `--candidates='[1,16]'`. Every run writes its
whole configuration into `bundle.json`, `run.json` or `results.json`.
"""


@dataclass
class ReferenceConfig:
    """Where the page goes.

    Attributes:
        output: File to write; printed when left out.
    """

    output: Path | None = None


@dataclass(frozen=True)
class Command:
    """One command: how it is called, the first line of its docstring, its dataclass."""

    line: str
    summary: str
    config: type


def main(config: ReferenceConfig) -> None:
    """Write or print the page."""
    text = page(commands(_ROOT))
    if config.output is None:
        print(text, end="")
    else:
        write_text(config.output, text)


def page(found: list[Command]) -> str:
    """Markdown: a table for each command."""
    parts = [_HEAD]
    for command in found:
        rows = [
            f"| `--{flag.name}` | {_cell(flag.kind)} | {_cell(flag.default)} | {flag.meaning} |"
            for flag in flags_of(command.config)
        ]
        table = ["| flag | type | default | meaning |", "|---|---|---|---|", *rows]
        parts.append(f"## `{command.line}`\n\n{command.summary}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "")


# ---- commands of a checkout ---------------------------------------------------------------------


def commands(root: Path) -> list[Command]:
    """Every file of a checkout that ends in ``run(main, SomeConfig)``.

    Raises:
        DeasError: There are no recipes there.
    """
    if not (root / "recipes").is_dir():
        raise DeasError(f"{root} has no recipes/: run it in a checkout of this project")
    found = []
    for folder in ("recipes", "eval", "deas_vla"):
        paths = sorted((root / folder).rglob("*.py"), key=lambda path: (path.stem != _FIRST, path))
        for path in paths:
            name = path.relative_to(root).as_posix()
            config = None if name.startswith(_LEFT_OUT) else _config_of(path)
            if config is not None:
                module = _import(path, root)
                summary = (module.__doc__ or "").strip().splitlines()[0]
                found.append(Command(_line(name), _summary(summary), getattr(module, config)))
    for name, (where, config) in COMMANDS.items():
        module = importlib.import_module(where)
        summary = (module.__doc__ or "").strip().splitlines()[0]
        line = f"python -m deas_vla {name}"
        found.append(Command(line, _summary(summary), getattr(module, config)))
    return found


def _config_of(path: Path) -> str | None:
    """The name in ``run(main, NAME)``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run":
            names = [each.id for each in node.args if isinstance(each, ast.Name)]
            if len(names) == 2 and names[0] == "main":
                return names[1]
    return None


def _import(path: Path, root: Path) -> types.ModuleType:
    if path.is_relative_to(root / "deas_vla"):
        return importlib.import_module(
            path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        )
    name = f"deas_vla_reference_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up the names of their annotations
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def _line(name: str) -> str:
    if name.startswith("deas_vla/"):
        return "python -m " + name.removesuffix(".py").replace("/", ".")
    launcher = "accelerate launch" if name == "recipes/finetune_groot.py" else "python"
    return f"{launcher} {name}"


def _summary(line: str) -> str:
    text, _, command = line.partition(": python -m ")
    return text + "." if command and not text.endswith(".") else text
