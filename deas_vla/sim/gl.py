"""Choose MuJoCo's headless renderer before MuJoCo is first imported."""

import os


def use_headless_gl() -> str:
    """Set ``MUJOCO_GL`` to ``egl`` unless the user set it; returns the backend in force.

    EGL runs on NVIDIA drivers and on Mesa's software rasteriser alike, so no display and no
    extra system package is needed on a usual machine.
    """
    backend = os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    return backend


def gl_failure(error: Exception) -> str:
    """One line for a renderer that would not start."""
    backend = os.environ.get("MUJOCO_GL", "unset")
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"rendering failed with MUJOCO_GL={backend} ({cause}): install Mesa's EGL (Debian: "
        "libegl1 libgl1-mesa-dri) or set MUJOCO_GL=osmesa with Debian's libosmesa6"
    )
