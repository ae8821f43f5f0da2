"""Our own files as text and as syntax trees, for the tests that read the house rules off them."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("deas_vla", "recipes", "eval")
distributions_of_imports = cache(packages_distributions)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources("deas_vla")}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING:``, imports inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield branch
                yield from runtime_nodes(branch)
        else:
            yield node
            yield from runtime_nodes(node)


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports; ``from a import b`` is ``a.b`` where that is our module."""
    names: set[str] = set()
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in runtime_nodes(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                names.add(full if full in MODULES else origin)
    return names


def beside(script: Path, name: str) -> bool:
    """Whether ``import name`` in a script means the file next to it, not an installed package."""
    return (script.parent / f"{name}.py").exists() and name not in distributions_of_imports()


@cache
def repo_files() -> list[Path]:
    """Files that git tracks or would track; without git, all but the generated folders."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        hidden = {".venv", ".uv", ".uv-cache", "outputs", "build", "__pycache__", ".git"}
        paths = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


def text_files() -> Iterator[tuple[Path, str]]:
    for path in repo_files():
        raw = path.read_bytes()
        if b"\0" not in raw[:8192]:
            yield path, raw.decode("utf-8", errors="replace")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
