"""Off-screen pictures of a MuJoCo state, fast for policies or pretty for people."""

# mujoco is a binary module without stubs:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import atexit
import importlib
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import radians, tan
from types import MappingProxyType
from typing import Any, Literal

import mujoco
import numpy as np

from robostack.common.text import one_line
from robostack.envs.aloha.cameras import Camera
from robostack.envs.gl import require_gl

Preset = Literal["fast", "pretty"]


@dataclass(frozen=True)
class RenderQuality:
    """What a picture spends its time on; None keeps the model's own number of samples per pixel."""

    shadows: bool
    samples: int | None


QUALITIES: Mapping[str, RenderQuality] = MappingProxyType(
    {
        # Measured in software EGL at 96×96: shadows cost 3/4 of the time, multisampling 2/3 of the rest.
        "fast": RenderQuality(shadows=False, samples=0),
        "pretty": RenderQuality(shadows=True, samples=None),
    }
)


class Renderer:
    """Renders one model at one quality, any camera at any size.

    One OpenGL context serves every size up to the largest seen so far. Between pictures it belongs to no thread, so
    that any may draw the next, one at a time.
    `mujoco.Renderer` is not used because it fixes the size, and because it takes the OpenGL backend from the
    environment when mujoco is first imported, whoever does that.
    """

    def __init__(self, model: mujoco.MjModel, quality: RenderQuality) -> None:
        self._model = model
        self._quality = quality
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = quality.shadows
        self._option = mujoco.MjvOption()
        self._gl: _OffscreenGL | None = None
        self._context: mujoco.MjrContext | None = None

    def render(self, data: mujoco.MjData, camera: Camera) -> np.ndarray:
        """A picture of `data`: (height, width, 3) uint8, first row on top.

        Raises ValueError where the model has no camera of that name, RuntimeError where OpenGL is missing or fails.
        """
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera.mount)
        if view.fixedcamid < 0:
            known = ", ".join(self._model.camera(i).name for i in range(self._model.ncam))
            raise ValueError(f"camera {camera.name!r}: the model has no camera {camera.mount!r}, it has {known}")
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, every, self._scene)
        if camera.fovy is not None:
            # The view frustum is narrowed in the scene, which the next update overwrites: the model stays as it is.
            for eye in self._scene.camera:
                eye.frustum_top = eye.frustum_near * tan(radians(camera.fovy) / 2)
                eye.frustum_bottom = -eye.frustum_top
        viewport = mujoco.MjrRect(0, 0, camera.width, camera.height)
        picture = np.empty((camera.height, camera.width, 3), dtype=np.uint8)
        with self._current_context(camera.height, camera.width) as context:
            mujoco.mjr_render(viewport, self._scene, context)
            mujoco.mjr_readPixels(picture, None, viewport, context)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's first row is the bottom one

    def close(self) -> None:
        """Frees the OpenGL context; a later `render` makes a new one."""
        if self._context is not None and self._gl is not None:
            self._gl.make_current()  # or what is freed would be another's; where it fails, nobody's
            self._context.free()
            self._gl.free()
        self._context = self._gl = None

    @contextmanager
    def _current_context(self, height: int, width: int) -> Iterator[mujoco.MjrContext]:
        """A context of at least this size, which is current inside."""
        if self._context is not None and (height > self._context.offHeight or width > self._context.offWidth):
            height, width = max(height, self._context.offHeight), max(width, self._context.offWidth)
            self.close()
        if self._gl is not None and not self._gl.make_current():
            self.close()
        if self._context is None or self._gl is None:
            self._gl = _OffscreenGL(width, height)
            # Registered after MuJoCo's own exit handler, so it runs before that one shuts OpenGL down.
            atexit.register(_close_if_alive, weakref.ref(self))
            self._context = self._new_context(height, width)
        try:
            yield self._context
        finally:
            self._gl.release()

    def _new_context(self, height: int, width: int) -> mujoco.MjrContext:
        """A context whose off-screen buffer has this size and quality; MuJoCo takes both from the model."""
        size, quality = self._model.vis.global_, self._model.vis.quality
        kept = size.offheight, size.offwidth, quality.offsamples
        try:
            size.offheight, size.offwidth = height, width
            if self._quality.samples is not None:
                quality.offsamples = self._quality.samples
            context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            size.offheight, size.offwidth, quality.offsamples = kept
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        return context


def _close_if_alive(renderer: weakref.ref[Renderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.close()


class _OffscreenGL:
    """MuJoCo's OpenGL context of the backend that this machine offers; when made it is current. Raises RuntimeError
    where there is no backend or it gives no context."""

    def __init__(self, width: int, height: int) -> None:
        self._backend = require_gl()
        try:
            self._module = importlib.import_module(f"mujoco.{self._backend}")
            if getattr(self._module, "EGL_DISPLAY", None) is not None:
                # A window that pygame has closed since shuts down the display of the whole process.
                self._module.EGL.eglInitialize(self._module.EGL_DISPLAY, None, None)
            # One that could not be made complains when it is deleted, unless it has this.
            kind = type("Context", (self._module.GLContext,), {"_context": None})
            self._context: Any = kind(width, height)
            self._context.make_current()
        except Exception as error:  # of whatever library the backend stands on
            raise RuntimeError(f"OpenGL by {self._backend} fails: {one_line(error)}") from error

    def make_current(self) -> bool:
        """For this thread. False if it is lost."""
        try:
            self._context.make_current()
        except Exception:  # PyOpenGL's are nothing more special
            return False
        return True

    def release(self) -> None:
        """Leaves this thread without a context."""
        with suppress(Exception):
            match self._backend:
                case "egl":
                    egl, nothing = self._module.EGL, self._module.EGL.EGL_NO_SURFACE
                    egl.eglMakeCurrent(self._module.EGL_DISPLAY, nothing, nothing, egl.EGL_NO_CONTEXT)
                case "osmesa":
                    self._module.osmesa.OSMesaMakeCurrent(None, None, self._module.GL.GL_FLOAT, 0, 0)
                case "glfw":
                    self._module.glfw.make_context_current(None)

    def free(self) -> None:
        """Ends it, if it is not lost."""
        with suppress(Exception):
            self._context.free()
        self._context._context = None
