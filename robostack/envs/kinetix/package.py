"""What robostack uses of the kinetix package, imported without the rest of it.

`import kinetix.environment` loads wandb, distrax and gymnax's zoo and takes 12 to 17 s. The environment's own files
need none of them: read past the packages' __init__ files they take about 1 s on top of JAX.
Importing this module also tells JAX where to keep compiled programs. It raises MissingExtraError where jax or kinetix
is not installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from robostack.common.extras import require_extra

for _module in ("jax", "jax2d", "gymnax", "kinetix"):
    require_extra(_module, "kinetix")

import jax  # noqa: E402 (where it is missing, the line above says so better)


def cache_folder() -> Path:
    """Where robostack keeps what it can make again: <user cache folder>/robostack."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robostack"


def _machine_key() -> str:
    """Names what compiled code depends on: a program compiled for another processor may die on this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = ""
    return hashlib.sha256(f"{processor} {jax.__version__}".encode()).hexdigest()[:16]


def _keep_compiled_programs() -> None:
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue] (set at run time)
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax" / _machine_key()))
        # Everything: building a world compiles a hundred small programs, of a few milliseconds each.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _folder(package: str) -> Path:
    top, *below = package.split(".")
    spec = importlib.util.find_spec(top)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], *below)


@contextmanager
def _past_init_files() -> Iterator[None]:
    """Inside, modules of kinetix and gymnax are imported without running the __init__ files above them.

    For that time empty packages stand in sys.modules. Whoever imports the packages later gets the real ones, made of
    the same modules.
    """
    names = ("gymnax", "gymnax.environments", "kinetix.environment", "kinetix.render")
    stand_ins = {name: _folder(name) for name in names if name not in sys.modules}
    for name, folder in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    try:
        if "gymnax" in stand_ins:  # one file of kinetix imports this name from the top
            params = importlib.import_module("gymnax.environments.environment").EnvParams
            sys.modules["gymnax"].__dict__["EnvParams"] = params
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


_keep_compiled_programs()
with _past_init_files():
    from jax2d.engine import PhysicsEngine
    from kinetix.environment.env import KinetixEnv as PackageEnv
    from kinetix.environment.env_state import EnvParams, EnvState, StaticEnvParams
    from kinetix.environment.spaces import ContinuousActions, EntityObservations, SymbolicObservations
    from kinetix.environment.utils import create_empty_env
    from kinetix.render.renderer_pixels import make_render_pixels

__all__ = [
    "ContinuousActions",
    "EntityObservations",
    "EnvParams",
    "EnvState",
    "PackageEnv",
    "StaticEnvParams",
    "SymbolicObservations",
    "cache_folder",
    "check_not_forked",
    "create_empty_env",
    "draw_start",
    "make_render_pixels",
]

_PROCESS = os.getpid()


def check_not_forked() -> None:
    """Raises RuntimeError where JAX would hang forever: in a process forked from one that had imported it."""
    if os.getpid() != _PROCESS:
        raise RuntimeError("this process was forked after JAX had started, and would hang: use spawn or forkserver")


def draw_start(seed: int, static_params: StaticEnvParams) -> EnvState:
    """A start state from the package's generator of random levels."""
    return _generator(static_params)(jax.random.PRNGKey(seed))


@cache
def _generator(static_params: StaticEnvParams) -> Callable[[jax.Array], EnvState]:
    with _past_init_files():
        from kinetix.environment.ued.distributions import sample_kinetix_level
        from kinetix.environment.ued.ued_state import UEDParams

    engine = PhysicsEngine(static_params)  # one for all levels: with another, the generator would be traced once more
    return lambda key: sample_kinetix_level(key, engine, EnvParams(), static_params, UEDParams())
