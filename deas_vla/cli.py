"""How a script reads its flags and reports a mistake: one line, exit status 2."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import draccus
from draccus.utils import DraccusException

from deas_vla.errors import DeasError
from deas_vla.flags import help_text

Config = TypeVar("Config")


def parse[Config](config_class: type[Config], arguments: list[str] | None = None) -> Config:
    """Read flags and ``--config_path`` YAML into a dataclass.

    Raises:
        DeasError: An unknown or malformed flag or YAML key, or a config file that is not there.
    """
    try:
        config: Config = draccus.parse(config_class, args=arguments, exit_on_error=False)
    except FileNotFoundError as error:
        raise DeasError(
            f"config file '{error.filename}' does not exist: check --config_path"
        ) from None
    except SystemExit as error:
        if error.code in (0, None):  # --help
            raise
        raise DeasError("a flag is unknown or malformed: see --help") from None
    except (DraccusException, TypeError, ValueError) as error:
        raise DeasError(f"{_one_line(error)}: see --help for the flags and YAML keys") from None
    except Exception as error:
        if type(error).__module__ in ("argparse", "yaml.scanner", "yaml.parser"):
            raise DeasError(f"{_one_line(error)}: see --help for the flags and YAML keys") from None
        raise
    return config


def run[Config](main: Callable[[Config], Any], config_class: type[Config]) -> None:
    """Parse the flags, run ``main``, turn a `DeasError` into one line on stderr and exit 2.

    With ``--help`` print what the module of ``main`` says of itself, and every flag.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(sys.modules[main.__module__].__doc__ or "", config_class))
        return
    try:
        main(parse(config_class))
    except DeasError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def make_output_dir(path: Path) -> Path:
    """Create ``path``; DeasError where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Of its own name: several processes of one run come here at the same time.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise DeasError(
            f"output directory {path} cannot be written ({error.strerror}): "
            "choose another with --output_dir"
        ) from error
    return path


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
