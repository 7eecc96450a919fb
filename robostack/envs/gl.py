"""Which OpenGL backend MuJoCo renders with on a machine without a screen.

MuJoCo reads `MUJOCO_GL` once, while it is imported, so the choice falls before that import and without it. A backend
is tried out in a process of its own, about 0.1 s: a broken driver cannot take this one down, and neither its threads
nor its shutdown touch an OpenGL that this process already uses. EGL comes first because it also drives GPUs.
What a shell has set for another machine (a backend, a device, a platform) and cannot work on this one is replaced,
with a warning. Simulation without images needs none of this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Iterator

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


_STEERING = (  # what else a shell may have set that decides whether OpenGL works
    "PYOPENGL_PLATFORM",
    "MUJOCO_EGL_DEVICE_ID",
    "EGL_PLATFORM",
    "__EGL_VENDOR_LIBRARY_FILENAMES",
    "__EGL_VENDOR_LIBRARY_DIRS",
    "LIBGL_DRIVERS_PATH",
    "MESA_LOADER_DRIVER_OVERRIDE",
    "GALLIUM_DRIVER",
)
_TRIED = "ROBOSTACK_GL_TRIED"  # in the environment, for children: what it says of OpenGL has been tried out


def choose_gl() -> str | None:
    """Chooses MuJoCo's OpenGL backend for this process and its children; call it before `import mujoco`.

    The backend that `MUJOCO_GL` names comes first, then EGL and OSMesa; the first that works here is written to
    `MUJOCO_GL`. One that was named and does not work, or variables that keep all of them from working, are warned of,
    and replaced or removed. The answer is remembered in the environment, so a second call costs nothing. It is "egl",
    "osmesa" or "glfw", or None when there is none: state-only simulation works all the same.
    """
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if named in _DISABLED:
        return None
    named = "" if named in _ENABLED else named
    if os.environ.get(_TRIED) == _asked_for():
        return named or None
    for backend, ignored in _candidates(named):
        if _works(backend, ignored):
            break
    else:
        backend, ignored = None, ()
    given = [f"{name}={os.environ[name]}" for name in ignored]
    if named and backend != named:
        given.insert(0, f"MUJOCO_GL={named}")
    for name in ignored:
        del os.environ[name]
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    elif named:
        os.environ["MUJOCO_GL"] = _DISABLED[0]  # with some names that do not work MuJoCo cannot even be imported
    os.environ[_TRIED] = _asked_for()
    if given:
        instead = f"rendering with {backend}" if backend else "there is no rendering"
        warnings.warn(f"{', '.join(given)} cannot work on this machine and is ignored: {instead}", stacklevel=2)
    return backend


def heed_shell() -> None:
    """`choose_gl`, if the shell has set anything about OpenGL: call it before `import mujoco`, which would fail."""
    if any(os.environ.get(name) for name in ("MUJOCO_GL", *_STEERING)):
        choose_gl()


def require_gl() -> str:
    """Like `choose_gl`, for those who are about to render. Raises RuntimeError where there is none."""
    backend = choose_gl()
    if backend is None:
        given = os.environ.get("MUJOCO_GL")
        if given and os.environ.get(_TRIED) != _asked_for():
            raise RuntimeError(f"rendering needs OpenGL, but MUJOCO_GL={given} leaves none: unset MUJOCO_GL")
        raise RuntimeError(f"rendering needs EGL or OSMesa, found neither: run `{INSTALL_COMMAND}`")
    return backend


def _asked_for() -> str:
    """What the environment says of OpenGL, without what MuJoCo itself adds when it loads a backend."""
    names = ("MUJOCO_GL", *_STEERING)
    values = {name: os.environ.get(name, "") for name in names}
    if values["PYOPENGL_PLATFORM"] == values["MUJOCO_GL"]:
        values["PYOPENGL_PLATFORM"] = ""
    return "|".join(values.values())


def _candidates(named: str) -> Iterator[tuple[str, Collection[str]]]:
    """Backends in the order of preference, each with the variables that would have to be ignored."""
    # PyOpenGL has read its platform when it was imported.
    unread = [name for name in _STEERING if name != "PYOPENGL_PLATFORM" or "OpenGL" not in sys.modules]
    set_here = tuple(name for name in unread if os.environ.get(name))
    if named:
        yield named, ()
        if set_here:
            yield named, set_here
    others = [backend for backend in ("egl", "osmesa") if backend != named]
    for ignored in ((), set_here) if set_here else ((),):
        for backend in others:
            yield backend, ignored


def _works(backend: str, ignored: Collection[str] = ()) -> bool:
    """Tries a backend out in a process of its own; a crash or a driver that hangs is a no."""
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    if backend in _CHECKS:
        if environment.get("PYOPENGL_PLATFORM", "").lower() not in ("", backend):
            return False  # MuJoCo refuses it
        command = [sys.executable, "-I", "-S", __file__, backend]
    elif backend == "glfw":
        command = [sys.executable, "-c", _GLFW_CHECK]
    else:
        return False
    try:
        done = subprocess.run(command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


_GLFW_CHECK = """
import glfw
works = glfw.init()
if works:
    glfw.window_hint(glfw.VISIBLE, 0)
    works = glfw.create_window(8, 8, "", None, None)
raise SystemExit(not works)
"""


def _egl_works() -> bool:
    """Whether the EGL device that MuJoCo will take gives the off-screen context that it asks for."""
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
    usable = list(devices[: count.value])
    if (asked := os.environ.get("MUJOCO_EGL_DEVICE_ID")) is not None:
        if not asked.strip().isdecimal() or int(asked) >= len(usable):
            return False  # MuJoCo refuses it
        usable = [usable[int(asked)]]
    displays = (display_of(_EGL_PLATFORM_DEVICE, device, None) for device in usable)
    display = next(
        (display for display in displays if display and egl.eglInitialize(pointer(display), None, None)), None
    )
    return display is not None and _egl_display_works(egl, pointer(display))


def _egl_display_works(egl: ctypes.CDLL, display: ctypes.c_void_p) -> bool:
    config, count = ctypes.c_void_p(), ctypes.c_int()
    attributes = (ctypes.c_int * len(_EGL_ATTRIBUTES))(*_EGL_ATTRIBUTES)
    chosen = egl.eglChooseConfig(display, attributes, ctypes.byref(config), 1, ctypes.byref(count))
    if not (chosen and count.value and egl.eglBindAPI(_EGL_OPENGL_API)):
        return False
    egl.eglCreateContext.restype = ctypes.c_void_p
    context = egl.eglCreateContext(display, config, None, None)
    return bool(context) and bool(egl.eglMakeCurrent(display, None, None, ctypes.c_void_p(context)))


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
