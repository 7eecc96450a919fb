"""Which OpenGL backend MuJoCo renders with on a machine without a screen.

MuJoCo reads `MUJOCO_GL` once, while it is imported, so the choice falls before that import and without it. A backend
is tried out in a process of its own, about 0.08 s: a broken driver cannot take this one down, and neither its threads
nor its shutdown touch an OpenGL that this process already uses. EGL comes first because it also drives GPUs.
Simulation without images needs none of this.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

INSTALL_COMMAND = "apt-get install -y libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri"  # Debian, Ubuntu; software EGL

_DISABLED = ("disable", "disabled", "off", "false", "0")  # MuJoCo's own words for "no rendering"
_ENABLED = ("", "enable", "enabled", "on", "true", "1")  # rendering, but no backend named: the choice is ours

_MAX_DEVICES = 10
_EGL_PLATFORM_DEVICE = 0x313F
_EGL_OPENGL_API = 0x30A2
# fmt: off
_EGL_ATTRIBUTES = (  # what MuJoCo will ask for
    0x3024, 8, 0x3023, 8, 0x3022, 8, 0x3021, 8,  # red, green, blue, alpha bits
    0x3025, 24, 0x3026, 8,                       # depth and stencil bits
    0x3033, 0x0001,                              # surface type: off-screen buffer
    0x3040, 0x0008,                              # renders desktop OpenGL
    0x3038,                                      # end of list
)
# fmt: on
_OSMESA_RGBA = 0x1908


def choose_gl() -> str | None:
    """Chooses MuJoCo's OpenGL backend for this process and its children; call it before `import mujoco`.

    A `MUJOCO_GL` that names a backend is obeyed unchecked. Otherwise the first of EGL and OSMesa that works here is
    written to `MUJOCO_GL`. The answer is remembered in that variable, so a second call costs nothing.

    Returns:
        The backend ("egl", "osmesa", or what `MUJOCO_GL` already named), or None when there is none: state-only
        simulation works all the same.
    """
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if named in _DISABLED:
        return None
    if named not in _ENABLED:
        return named
    backend = _working_backend(os.environ.get("PYOPENGL_PLATFORM", "").lower())
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    return backend


def require_gl() -> str:
    """Like `choose_gl`, for those who are about to render.

    Raises:
        RuntimeError: there is none.
    """
    backend = choose_gl()
    if backend is None:
        given = os.environ.get("MUJOCO_GL")
        if given:
            raise RuntimeError(f"rendering needs OpenGL, but MUJOCO_GL={given} leaves none: unset MUJOCO_GL")
        raise RuntimeError(f"rendering needs EGL or OSMesa, found neither: run `{INSTALL_COMMAND}`")
    return backend


@cache
def _working_backend(platform: str) -> str | None:
    """The first backend that works; `platform` (PYOPENGL_PLATFORM) rules out the others when it is set."""
    return next((name for name in _CHECKS if platform in ("", name) and _works(name)), None)


def _works(backend: str) -> bool:
    """Runs this file by itself to try a backend out; a crash or a driver that hangs is a no."""
    command = [sys.executable, "-I", "-S", __file__, backend]
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _egl_works() -> bool:
    """Whether some EGL device initialises and offers the off-screen configuration that MuJoCo asks for."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        _load_first("libOpenGL.so.0", "libGL.so.1")  # PyOpenGL takes its entry points from one of these
    except OSError:
        return False
    find = ctypes.CFUNCTYPE(pointer, ctypes.c_char_p)(("eglGetProcAddress", egl))
    query_devices, get_display = find(b"eglQueryDevicesEXT"), find(b"eglGetPlatformDisplayEXT")
    if not query_devices or not get_display:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, integer, ctypes.POINTER(pointer), ctypes.POINTER(integer))(query_devices)
    display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(get_display)
    devices, count = (pointer * _MAX_DEVICES)(), integer()
    if not query(_MAX_DEVICES, devices, ctypes.byref(count)):
        return False
    displays = (display_of(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and _egl_display_works(egl, display) for display in displays)


def _egl_display_works(egl: ctypes.CDLL, display: int) -> bool:
    handle = ctypes.c_void_p(display)
    if not egl.eglInitialize(handle, None, None):
        return False
    config, count = ctypes.c_void_p(), ctypes.c_int()
    attributes = (ctypes.c_int * len(_EGL_ATTRIBUTES))(*_EGL_ATTRIBUTES)
    chosen = egl.eglChooseConfig(handle, attributes, ctypes.byref(config), 1, ctypes.byref(count))
    return bool(chosen and count.value and egl.eglBindAPI(_EGL_OPENGL_API))


def _osmesa_works() -> bool:
    """Whether OSMesa loads and gives a context."""
    try:
        osmesa = _load_first("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
    except OSError:
        return False
    osmesa.OSMesaCreateContextExt.restype = ctypes.c_void_p
    return bool(osmesa.OSMesaCreateContextExt(_OSMESA_RGBA, 24, 8, 0, None))


def _load_first(*names: str) -> ctypes.CDLL:
    """The first of these shared libraries that loads; OSError when none does."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise OSError(f"expected one of {', '.join(names)}, found none")


_CHECKS: dict[str, Callable[[], bool]] = {"egl": _egl_works, "osmesa": _osmesa_works}


if __name__ == "__main__":  # `python gl.py egl`: exit status 0 if it works; scripts/setup asks this too
    sys.exit(0 if _CHECKS[sys.argv[1]]() else 1)
