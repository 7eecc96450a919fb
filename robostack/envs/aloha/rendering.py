"""Off-screen pictures of a MuJoCo state, fast for policies or pretty for people."""

# mujoco is a binary module without stubs:
# pyright: reportAttributeAccessIssue=false

import atexit
import importlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from math import radians, tan
from types import MappingProxyType
from typing import Any, Literal

import mujoco
import numpy as np

from robostack.envs.aloha.cameras import Camera
from robostack.envs.gl import INSTALL_COMMAND, choose_gl

Preset = Literal["fast", "pretty"]


@dataclass(frozen=True)
class RenderQuality:
    """What a picture spends its time on; None keeps the model's own number of samples a pixel."""

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

    One OpenGL context serves every size up to the largest seen so far. It belongs to the thread that made it.
    `mujoco.Renderer` is not used because it fixes the size, and because it takes the OpenGL backend from the
    environment when mujoco is first imported, whoever does that.
    """

    def __init__(self, model: mujoco.MjModel, quality: RenderQuality) -> None:
        self._model = model
        self._quality = quality
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = quality.shadows
        self._option = mujoco.MjvOption()
        self._gl: Any = None
        self._context: mujoco.MjrContext | None = None

    def render(self, data: mujoco.MjData, camera: Camera) -> np.ndarray:
        """A picture of `data`: (height, width, 3) uint8, first row on top.

        Raises:
            ValueError: the model has no camera of that name.
            RuntimeError: no OpenGL backend is available.
        """
        context = self._current_context(camera.height, camera.width)
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
        mujoco.mjr_render(viewport, self._scene, context)
        picture = np.empty((camera.height, camera.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, context)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's first row is the bottom one

    def close(self) -> None:
        """Frees the OpenGL context; a later `render` makes a new one."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = self._gl = None

    def _current_context(self, height: int, width: int) -> mujoco.MjrContext:
        if self._context is not None and (height > self._context.offHeight or width > self._context.offWidth):
            height, width = max(height, self._context.offHeight), max(width, self._context.offWidth)
            self.close()
        if self._context is None:
            self._gl = _gl_context_class()(width, height)
            # Registered after MuJoCo's own exit handler, so it runs before that one shuts OpenGL down.
            atexit.register(_close_if_alive, weakref.ref(self))
            self._gl.make_current()
            self._context = self._new_context(height, width)
        self._gl.make_current()
        return self._context

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


def _close_if_alive(renderer: "weakref.ref[Renderer]") -> None:
    alive = renderer()
    if alive is not None:
        alive.close()


def _gl_context_class() -> Any:
    """MuJoCo's context class for the backend that this machine offers."""
    backend = choose_gl()
    if backend is None:
        raise RuntimeError(f"rendering needs EGL or OSMesa, found neither: run `{INSTALL_COMMAND}`")
    return importlib.import_module(f"mujoco.{backend}").GLContext
