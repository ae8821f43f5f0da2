"""The configuration reference: flags of dataclasses as they are, and the page is today's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from deas_vla.cli import run
from deas_vla.flags import Flag, flags_of, help_text
from deas_vla.reference import commands, page


@dataclass
class Part:
    """A part.

    Attributes:
        size: How large,
            in pixels.
        names: Of ``both``.
    """

    size: int
    names: list[str] = field(default_factory=lambda: ["a", "b"])


@dataclass
class Base:
    """Inherited.

    Attributes:
        where: A place.
        kind: This | that.
    """

    where: Path | None = None
    kind: Literal["this", "that"] = "this"


@dataclass
class Whole(Base):
    """A whole.

    Attributes:
        part: A part.
        more: Further ones.
        where: Another place.
    """

    part: Part = field(default_factory=lambda: Part(64))
    more: list[Part] = field(default_factory=list)
    quick: bool = False


def test_flags_types_defaults_and_meanings() -> None:
    assert list(flags_of(Whole)) == [
        Flag("where", "path or none", "none", "Another place."),
        Flag("kind", "`this` or `that`", "this", "This \\| that."),
        Flag("part.size", "whole number", "64", "How large, in pixels."),
        Flag("part.names", "list of text", "[a, b]", "Of `both`."),
        Flag("more", "list of {size, names}", "[]", "Further ones."),
        Flag("quick", "true or false", "false", ""),
    ]
    assert next(flags_of(Part)).default == "required"


def test_help_is_the_command_s_words_and_every_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert help_text("Do it.\n\npython it.py", Whole, width=60).splitlines() == [
        "Do it.",
        "",
        "python it.py",
        "",
        "Flags, as --name=value, with their defaults; each is also a",
        "key of the YAML file that --config_path=FILE names, nested",
        "at its dots.",
        "",
        "  --where=none  (path or none)",
        "      Another place.",
        "  --kind=this  (this or that)",
        "      This | that.",
        "  --part.size=64  (whole number)",
        "      How large, in pixels.",
        "  --part.names=[a, b]  (list of text)",
        "      Of `both`.",
        "  --more=[]  (list of {size, names})",
        "      Further ones.",
        "  --quick=false  (true or false)",
    ]

    def main(config: Whole) -> None:
        raise AssertionError("asked for help alone")

    monkeypatch.setattr("sys.argv", ["it.py", "--quick=true", "--help"])
    run(main, Whole)
    assert capsys.readouterr().out.startswith("The configuration reference: flags of dataclasses")


def test_the_page_is_current_and_says_what_every_flag_is_for(repo_root: Path) -> None:
    found = commands(repo_root)
    lines = [command.line for command in found]
    assert len(set(lines)) == len(lines)
    assert {
        "accelerate launch recipes/finetune_groot.py",
        "python eval/robocasa.py",
        "python -m deas_vla.serve",
        "python -m deas_vla doctor",
    } <= set(lines)
    dumb = [
        f"{command.line} --{flag.name}"
        for command in found
        for flag in flags_of(command.config)
        if not flag.meaning
    ]
    assert dumb == []
    written = (repo_root / "docs/configuration.md").read_text(encoding="utf-8")
    assert written == page(found), "python -m deas_vla config-reference --output docs/..."
