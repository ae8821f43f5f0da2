"""Choose MuJoCo's headless renderer before MuJoCo is first imported."""

import ctypes.util
import os
import sys
import traceback
import warnings

from deas_vla.errors import DeasError

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}  # in order of preference
_OFFSCREEN = ("egl", "osmesa", "cgl", "wgl")  # what robosuite renders pictures with, by system


def use_headless_gl() -> str:
    """Set ``MUJOCO_GL`` to what this machine has unless the user set it; returns it.

    EGL comes first, because it runs on NVIDIA drivers and on Mesa's software rasteriser alike.
    OSMesa stands in where only it is installed; on a CPU it is about twice as fast.

    Raises:
        DeasError: The user set what cannot render without a window.
    """
    if "MUJOCO_GL" not in os.environ:
        found = [name for name, lib in _LIBRARIES.items() if ctypes.util.find_library(lib)]
        os.environ["MUJOCO_GL"] = found[0] if found else "egl"
    backend = os.environ["MUJOCO_GL"]
    if backend.strip().lower() not in _OFFSCREEN:
        raise DeasError(
            f"MUJOCO_GL={backend} is no renderer for pictures: set it to one of "
            f"{', '.join(_OFFSCREEN)}, or leave it unset"
        )
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    return backend


def check_gl() -> str:
    """Set a renderer up for an empty world, so that a failure is known before any simulator starts.

    Returns:
        The backend in force.

    Raises:
        DeasError: It does not start; what was tried and what to set.
    """
    backend = use_headless_gl()
    try:
        import mujoco

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it all
            context = mujoco.GLContext(16, 16)
            context.make_current()
            world = mujoco.MjModel.from_xml_string("<mujoco/>")
            mujoco.MjrContext(world, mujoco.mjtFontScale.mjFONTSCALE_100.value).free()
            context.free()
    except Exception as error:  # every backend raises its own class, on import or later
        failure = gl_failure(error)
        _forget(error)
        raise DeasError(failure) from None
    return backend


def _forget(error: BaseException | None) -> None:
    """Free what an error's frames hold: MuJoCo's half-made contexts complain when they are."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
    finally:
        sys.unraisablehook = hook


def gl_failure(error: Exception) -> str:
    """One line for a renderer that would not start."""
    backend = os.environ.get("MUJOCO_GL", "unset")
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    there = {name: bool(ctypes.util.find_library(lib)) for name, lib in _LIBRARIES.items()}
    found = ", ".join(f"lib{_LIBRARIES[k]} {'found' if v else 'missing'}" for k, v in there.items())
    return (
        f"rendering failed with MUJOCO_GL={backend} ({cause}; {found}): set MUJOCO_GL=egl with an "
        "NVIDIA driver or Mesa (Debian: libegl1 libgl1-mesa-dri), or MUJOCO_GL=osmesa with "
        "Debian's libosmesa6"
    )
