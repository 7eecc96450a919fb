"""Choosing MuJoCo's OpenGL backend."""

import os
import subprocess
import sys
import time
import warnings

import pytest

from robostack.envs import gl


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No choice made yet, and none left behind."""
    for name in ("MUJOCO_GL", gl._TRIED, *gl._STEERING):
        monkeypatch.setenv(name, "")  # recorded by monkeypatch, so that what choose_gl writes or removes is undone
        monkeypatch.delenv(name)


def backends(monkeypatch, **works: bool):
    """What works, whatever else is set."""
    monkeypatch.setattr(gl, "_works", lambda backend, ignored=(): works.get(backend, False))


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
    assert not os.environ.get("MUJOCO_GL")
    with pytest.raises(RuntimeError, match="apt-get install -y libegl1"):
        gl.require_gl()


@pytest.mark.parametrize(("given", "backend"), [("osmesa", "osmesa"), ("EGL ", "egl"), ("glfw", "glfw"), ("off", None)])
def test_a_given_mujoco_gl_that_works_is_obeyed(monkeypatch, given, backend):
    monkeypatch.setenv("MUJOCO_GL", given)
    backends(monkeypatch, egl=True, osmesa=True, glfw=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gl.choose_gl() == backend
    assert os.environ["MUJOCO_GL"].strip().lower() == backend or backend is None


@pytest.mark.parametrize("given", ["glfw", "osmesa", "wgl", "nonsense"])
def test_a_given_mujoco_gl_that_cannot_work_is_replaced_with_a_warning(monkeypatch, given):
    monkeypatch.setenv("MUJOCO_GL", given)
    backends(monkeypatch, egl=True)
    with pytest.warns(UserWarning, match=f"MUJOCO_GL={given} cannot work on this machine.*egl"):
        assert gl.choose_gl() == "egl"
    assert os.environ["MUJOCO_GL"] == "egl" and gl.require_gl() == "egl"


def test_a_backend_that_cannot_work_where_none_does_leaves_simulation_without_pictures(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    backends(monkeypatch)
    with pytest.warns(UserWarning, match="there is no rendering"):
        assert gl.choose_gl() is None
    assert os.environ["MUJOCO_GL"] == "disable"  # or `import mujoco` would fail
    with pytest.raises(RuntimeError, match="found neither"):
        gl.require_gl()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MUJOCO_EGL_DEVICE_ID", "99"),
        ("MUJOCO_EGL_DEVICE_ID", "first"),
        ("PYOPENGL_PLATFORM", "glx"),
        ("__EGL_VENDOR_LIBRARY_FILENAMES", "/nowhere.json"),
        ("GALLIUM_DRIVER", "nonsense"),
    ],
)
@pytest.mark.parametrize("backend", ["", "egl"])
def test_a_device_platform_or_driver_that_cannot_work_is_ignored_with_a_warning(name, value, backend):
    """In a process that makes a picture, started from a shell where it is set."""
    script = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from robostack import envs
    env = envs.make("aloha-transfer-cube", render_mode="rgb_array", render_height=16, render_width=16)
    env.reset(seed=0)
    assert env.render().max() > 0
print([str(warning.message) for warning in told])
"""
    if not gl._works("egl"):
        pytest.skip("no EGL on this machine")
    variables = {name: value} | ({"MUJOCO_GL": backend} if backend else {})
    kept = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", gl._TRIED, *gl._STEERING)}
    done = subprocess.run([sys.executable, "-c", script], env=kept | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{name}={value} cannot work on this machine and is ignored: rendering with egl" in done.stdout


def test_simulation_without_pictures_works_whatever_the_shell_asks_for():
    script = "from robostack import envs; envs.make('aloha-transfer-cube').reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"MUJOCO_GL": "wgl"}, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_rendering_that_was_switched_off_says_so(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=disable"):
        gl.require_gl()


def test_pyopengl_platform_rules_out_the_other_backend(monkeypatch):
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert not gl._works("egl")  # although it may be here
    monkeypatch.setattr(gl, "_works", lambda backend, ignored: backend == "osmesa" or bool(ignored))
    assert gl.choose_gl() == "osmesa" and os.environ["PYOPENGL_PLATFORM"] == "osmesa"


def test_each_backend_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(gl, "_works", lambda backend, ignored: bool(tried.append(backend)))
    assert gl.choose_gl() is None
    assert gl.choose_gl() is None
    assert tried == ["egl", "osmesa"]


def test_a_driver_that_crashes_or_hangs_is_a_no(monkeypatch, tmp_path):
    driver = tmp_path / "gl.py"
    monkeypatch.setattr(gl, "__file__", str(driver))
    driver.write_text("import os; os.abort()")
    assert not gl._works("egl")
    run = subprocess.run
    monkeypatch.setattr(gl.subprocess, "run", lambda command, **options: run(command, **options | {"timeout": 0.2}))
    driver.write_text("import time; time.sleep(60)")
    assert not gl._works("egl")


def test_missing_libraries_are_a_no(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(gl.ctypes, "CDLL", no_library)
    assert not gl._egl_works()
    assert not gl._osmesa_works()


def test_the_choice_renders_and_is_made_without_mujoco():
    """In a process of its own: the choice imports no mujoco, MuJoCo can use it, and trying again does no harm."""
    script = """
import sys
from robostack.envs import gl
backend = gl.choose_gl()
assert "mujoco" not in sys.modules
if backend is None:
    sys.exit(77)
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 32, 32) as renderer:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    assert renderer.render().max() > 0
    gl._works(backend)
    assert renderer.render().max() > 0
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("no OpenGL on this machine")
    assert done.returncode == 0, done.stderr


def test_the_choice_is_quick():
    gl._works("egl")  # the first call reads the driver from disk
    started = time.perf_counter()
    gl._works("egl")
    assert time.perf_counter() - started < 5  # 0.1 s measured; a busy machine is granted much more
