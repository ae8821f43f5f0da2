"""The house rules, read off the source: versions, dependencies, arrows, what is never written."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.setupcfg import read_configuration
from source_cases import (
    CODE,
    MODULES,
    ROOT,
    beside,
    distributions_of_imports,
    imported,
    parsed,
    relative,
    sources,
    text_files,
)

# docs/architecture.md in one table: a part imports its own layer and those below it.
LAYERS = {
    "errors": 0,
    "flags": 0,
    "files": 0,
    "digests": 0,
    "critic": 1,
    "cli": 1,
    "provenance": 1,
    "data": 2,
    "policies": 2,
    "guidance": 3,
    "envs": 4,
    "bundle": 4,
    "adapters": 4,
    "evaluation": 5,
    "training": 5,
    "serving": 5,
    "plugin": 5,
    # The package's commands.
    "serve": 6,
    "doctor": 6,
    "reference": 6,
    "__main__": 7,
}
# The critic reads like the paper: tensors, and nothing that knows a robot, a dataset or a VLA.
CRITIC_MAY_IMPORT = {"numpy", "safetensors", "torch"}
# Where the packages of extras may be imported; everything else needs the required ones alone.
OPTIONAL_IN = (
    "deas_vla/envs/",
    "deas_vla/policies/remote/",
    "deas_vla/serving/",
    "recipes/",
    "eval/",
)


def third_party(path: Path) -> set[str]:
    """Top-level names that are neither Python's, nor ours, nor a file beside the script."""
    tops = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {*CODE}
    scripts = not path.is_relative_to(ROOT / "deas_vla")
    return {top for top in tops if not (scripts and beside(path, top))}


def part(module: str) -> str:
    """``deas_vla.critic.deas`` -> ``critic``; the package itself -> ``''``."""
    return module.split(".")[1] if "." in module else ""


def our_imports(module: str) -> set[str]:
    names = imported(MODULES[module])
    return {name for name in names if name.split(".")[0] == "deas_vla"} - {module}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a directed graph as a path that ends where it began, or nothing."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := walk(target, [*trail, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


@cache
def setup_cfg() -> dict[str, dict]:
    """setup.cfg as setuptools reads it."""
    return read_configuration(ROOT / "setup.cfg")


def declared(*extras: str) -> set[str]:
    """Distributions that setup.cfg asks for, by canonical name."""
    options = setup_cfg()["options"]
    lines = list(options["install_requires"])
    for extra in extras:
        lines += options["extras_require"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


# ---- metadata -----------------------------------------------------------------------------------


def test_version_has_one_home() -> None:
    import deas_vla

    raw = configparser.ConfigParser(interpolation=None)
    raw.read(ROOT / "setup.cfg", encoding="utf-8")
    assert raw["metadata"]["version"] == "attr: deas_vla.__version__"
    assert setup_cfg()["metadata"]["version"] == deas_vla.__version__
    assert f"## {deas_vla.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"


def test_requirements_pin_every_declared_package() -> None:
    pinned: dict[str, Requirement] = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            assert [spec.operator for spec in requirement.specifier] == ["=="], line
            pinned[canonicalize_name(requirement.name)] = requirement

    options = setup_cfg()["options"]
    for extra, lines in {"": options["install_requires"], **options["extras_require"]}.items():
        for line in lines:
            wanted = Requirement(line)
            found = pinned.get(canonicalize_name(wanted.name))
            assert found is not None, f"{wanted.name} ({extra or 'base'}): run `make requirements`"
            version = next(iter(found.specifier)).version
            assert wanted.specifier.contains(version), f"{line} but {version} is pinned"


def test_the_all_extra_is_the_others_together() -> None:
    options = setup_cfg()["options"]
    extras = options["extras_require"]
    every = {line for name, lines in extras.items() if name not in ("all", "dev") for line in lines}
    assert every <= set(extras["all"])


def test_assets_are_package_data() -> None:
    package_data = setup_cfg()["options"]["package_data"]
    assert package_data == {"deas_vla": ["assets/**"]}


# ---- dependencies -------------------------------------------------------------------------------


def test_imports_are_declared() -> None:
    owners = distributions_of_imports()
    missing = []
    for path in sources(*CODE):
        optional = relative(path).startswith(OPTIONAL_IN)
        allowed, where = (
            (declared("all"), "an extra") if optional else (declared(), "install_requires")
        )
        for name in sorted(third_party(path)):
            distributions = {canonicalize_name(owner) for owner in owners.get(name, [])}
            if not distributions & allowed:
                missing.append(f"{relative(path)}: {name} of {distributions}, not in {where}")
    assert missing == []


SHADOWING = [p for p in sources("recipes", "eval") if p.stem in distributions_of_imports()]


@pytest.mark.slow
@pytest.mark.parametrize("path", SHADOWING, ids=relative)
def test_a_script_does_not_shadow_the_package_it_is_named_after(path: Path) -> None:
    """`python eval/robosuite.py` puts eval/ first on sys.path: `import_package` looks past it."""
    code = (
        "import importlib.util, runpy, sys\n"
        "script, folder, name = sys.argv[1:]\n"
        "sys.path[0], sys.argv = folder, [script, '--help']\n"
        "plain = importlib.util.find_spec(name).origin\n"
        "try:\n"
        "    runpy.run_path(script, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "from deas_vla.envs.packages import import_package\n"
        "import_package('robosuite')\n"  # robocasa imports it by its bare name
        "package = import_package(name)\n"
        "assert importlib.import_module(name) is package\n"
        "print(plain, package.__file__, sep='\\n')\n"
    )
    command = [sys.executable, "-c", code, str(path), str(path.parent), path.stem]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    plain, package = (Path(line) for line in run.stdout.splitlines()[-2:])
    assert plain == path  # without the door it would be the script
    assert package.parent.name == path.stem and not package.is_relative_to(ROOT / path.parent.name)


def test_the_shadowing_scripts_are_these() -> None:
    assert [relative(path) for path in SHADOWING] == ["eval/robocasa.py", "eval/robosuite.py"]


# ---- size and place -----------------------------------------------------------------------------


def test_no_file_is_too_long_to_hold() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in sources(*CODE)}
    most = {path: 400 if path.is_relative_to(ROOT / "deas_vla") else 250 for path in lines}
    assert [f"{relative(p)}: {lines[p]} lines" for p in lines if lines[p] > most[p]] == []


def test_tests_lie_in_the_folder_of_what_they_test() -> None:
    parts = {path.name for path in (ROOT / "deas_vla").iterdir() if (path / "__init__.py").exists()}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= parts
    single = {f"test_{path.stem}.py" for path in (ROOT / "deas_vla").glob("*.py")}
    of_the_repository = {"test_packaging.py", "test_docs.py"}
    tests = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert tests <= single | of_the_repository


# ---- the parts and their arrows -----------------------------------------------------------------


def test_every_part_has_a_place() -> None:
    parts = {part(module) for module in MODULES} - {""}
    assert parts <= set(LAYERS), f"no layer for {parts - set(LAYERS)}: see docs/architecture.md"


def test_arrows_point_down() -> None:
    wrong = []
    for module, path in MODULES.items():
        here = part(module)
        wrong += [f"{module} -> {n}" for n in imported(path) if n.split(".")[0] in CODE[1:]]
        for target in our_imports(module):
            there = part(target)
            if here == there or not there:  # a part's own modules; `deas_vla` holds the version
                continue
            # The package itself imports nothing of ours: `import deas_vla` stays free.
            if not here or LAYERS.get(there, 0) > LAYERS.get(here, 0):
                wrong.append(f"{module} -> {target}")
    assert wrong == []


def test_no_cycles_between_modules() -> None:
    assert cycle({module: our_imports(module) for module in MODULES}) == []


def test_no_cycles_between_parts() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        targets = {part(target) for target in our_imports(module)} - {part(module), ""}
        graph.setdefault(part(module), set()).update(targets)
    assert cycle(graph) == []


def test_the_critic_knows_only_tensors() -> None:
    known = {name for path in sources("deas_vla/critic") for name in third_party(path)}
    assert known <= CRITIC_MAY_IMPORT


def test_only_policies_know_a_family() -> None:
    """Training, guidance and evaluation are typed on the protocol and use nothing below it."""
    wrong = []
    for path in sources("deas_vla"):
        if path.is_relative_to(ROOT / "deas_vla/policies"):
            continue
        wrong += [
            f"{relative(path)} -> {n}" for n in imported(path) if "deas_vla.policies.groot" in n
        ]
        reached = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Attribute)]
        wrong += [f"{relative(path)}:{n.lineno}" for n in reached if n.attr == "groot"]
    assert wrong == []


def test_the_cycle_finder_finds_cycles() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


# ---- what may never be written ------------------------------------------------------------------

# LeRobot's protocol is made of pickles. There alone they're read, by an unpickler that knows a
# dozen classes and calls nothing else.
UNPICKLES = ("deas_vla/serving/unpickle.py",)
UNSAFE_MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def unsafe_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        place = f"{relative(path)}:{node.lineno}"
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for flag in ("trust_remote_code", "allow_pickle"):
            if said.get(flag, "False") != "False":
                yield f"{place} {flag}={said[flag]}"
        if ast.unparse(node.func) == "torch.load" and said.get("weights_only") != "True":
            yield f"{place} torch.load without weights_only=True"


def test_nothing_runs_code_from_data() -> None:
    found = []
    for path in sources(*CODE, "tests"):
        tops = {name.split(".")[0] for name in imported(path)}
        unsafe = tops & UNSAFE_MODULES if relative(path) not in UNPICKLES else set()
        found += [f"{relative(path)} imports {name}" for name in sorted(unsafe)]
        found += unsafe_calls(path)
    assert found == []


def test_no_file_trusts_remote_code() -> None:
    said = re.compile(r"trust_remote_code[\"']?\s*[=:]\s*true", re.IGNORECASE)
    assert [relative(path) for path, text in text_files() if said.search(text)] == []


def test_no_file_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w./-])/(?:work|root|home/\w+)/")
    hits = [
        f"{relative(path)}:{number}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if machine.search(line)
    ]
    assert hits == []
