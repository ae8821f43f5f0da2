"""python -m deas_vla doctor [--dataset DIR] [--bundle DIR]; python -m deas_vla config-reference"""

import importlib
import sys

from deas_vla.cli import run
from deas_vla.reference import COMMANDS


def command() -> None:
    """Run the command that is named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(
            f"error: command '{name}' is unknown: use python -m deas_vla doctor "
            "[--dataset DIR] [--bundle DIR], or config-reference [--output FILE]",
            file=sys.stderr,
        )
        raise SystemExit(2)
    del sys.argv[1]
    where, config = COMMANDS[name]
    module = importlib.import_module(where)
    run(module.main, getattr(module, config))


if __name__ == "__main__":
    command()
