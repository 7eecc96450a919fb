"""Choosing MuJoCo's OpenGL backend."""

import os
import subprocess
import sys
import time

import pytest

from robostack.envs import gl


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No choice made yet, and none left behind."""
    monkeypatch.setenv("MUJOCO_GL", "")  # recorded by monkeypatch, so that what choose_gl writes is undone
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    gl._working_backend.cache_clear()
    yield
    gl._working_backend.cache_clear()


def backends(monkeypatch, **works: bool):
    monkeypatch.setattr(gl, "_CHECKS", {name: lambda answer=answer: answer for name, answer in works.items()})


def test_egl_comes_before_osmesa(monkeypatch):
    backends(monkeypatch, egl=True, osmesa=True)
    assert gl.choose_gl() == "egl"
    assert os.environ["MUJOCO_GL"] == "egl"


def test_osmesa_stands_in_for_a_broken_egl(monkeypatch):
    backends(monkeypatch, egl=False, osmesa=True)
    assert gl.choose_gl() == "osmesa"


def test_no_backend_leaves_the_environment_alone(monkeypatch):
    backends(monkeypatch, egl=False, osmesa=False)
    assert gl.choose_gl() is None
    assert os.environ["MUJOCO_GL"] == ""
    with pytest.raises(RuntimeError, match="apt-get install -y libegl1"):
        gl.require_gl()


@pytest.mark.parametrize(("given", "backend"), [("osmesa", "osmesa"), ("EGL ", "egl"), ("glfw", "glfw"), ("off", None)])
def test_a_given_mujoco_gl_is_obeyed(monkeypatch, given, backend):
    monkeypatch.setenv("MUJOCO_GL", given)
    backends(monkeypatch, egl=True, osmesa=True)
    assert gl.choose_gl() == backend
    assert os.environ["MUJOCO_GL"] == given


def test_rendering_that_was_switched_off_says_so(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=disable"):
        gl.require_gl()


def test_pyopengl_platform_rules_out_the_other_backend(monkeypatch):
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    backends(monkeypatch, egl=True, osmesa=True)
    assert gl.choose_gl() == "osmesa"


def test_the_check_runs_once(monkeypatch):
    calls = []
    monkeypatch.setattr(gl, "_CHECKS", {"egl": lambda: bool(calls.append(1)), "osmesa": lambda: False})
    assert gl.choose_gl() is None
    assert gl.choose_gl() is None
    assert len(calls) == 1


def test_missing_libraries_are_no_error(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(gl.ctypes, "CDLL", no_library)
    assert gl.choose_gl() is None


def test_the_choice_renders_and_is_made_without_mujoco():
    """In a process of its own: the choice imports no mujoco, leaves no thread behind, and MuJoCo can use it."""
    script = """
import os, sys
from robostack.envs.gl import choose_gl
threads = os.listdir("/proc/self/task")
backend = choose_gl()
assert "mujoco" not in sys.modules
assert os.listdir("/proc/self/task") == threads
if backend is None:
    sys.exit(77)
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 32, 32) as renderer:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    assert renderer.render().max() > 0
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("no OpenGL on this machine")
    assert done.returncode == 0, done.stderr


def test_the_real_check_is_quick():
    gl._egl_works()  # the first call reads the driver from disk
    started = time.perf_counter()
    gl._egl_works()
    assert time.perf_counter() - started < 0.5  # 0.05 s measured; a shared machine is granted tenfold
