"""python -m deas_vla doctor [--dataset DIR] [--bundle DIR]"""

import sys

from deas_vla.cli import run
from deas_vla.doctor import DoctorConfig, main


def command() -> None:
    """Run the command that is named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name != "doctor":
        print(
            f"error: command '{name}' is unknown: use python -m deas_vla doctor "
            "[--dataset DIR] [--bundle DIR]",
            file=sys.stderr,
        )
        raise SystemExit(2)
    del sys.argv[1]
    run(main, DoctorConfig)


if __name__ == "__main__":
    command()
