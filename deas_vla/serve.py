"""Serve a bundle: python -m deas_vla.serve --bundle outputs/quickstart --port 5555

Robots speak GR00T's policy-server protocol, N1.5's or N1.7's; docs/serving.md has the rest.
"""

from deas_vla.cli import run
from deas_vla.serving.config import ServeConfig


def main(config: ServeConfig) -> None:
    from deas_vla.serving.running import serve

    serve(config)


if __name__ == "__main__":
    run(main, ServeConfig)
