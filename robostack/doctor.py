"""`robostack doctor`: what is installed, what this machine offers, and whether the parts work together.

The report is a plain dictionary, so that it can go into an issue as JSON. Heavy packages are imported by the checks
that use them: a broken one is then a failed check, not the end of the doctor.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robostack.common.extras import MissingExtraError, require_extra
from robostack.common.provenance import describe_machine
from robostack.common.text import one_line, printable

# Distribution → the extra of robostack that installs it; None comes with robostack itself.
PACKAGES: Mapping[str, str | None] = {
    "torch": None,
    "triton": None,
    "numpy": None,
    "mujoco": None,
    "gymnasium": None,
    "zarr": None,
    "safetensors": None,
    "gym-aloha": "aloha",
    "av": "report",
    "matplotlib": "report",
    "tensorboard": "tensorboard",
    "sentencepiece": "text",
    "tokenizers": "text",
    "lerobot": "lerobot",
    "torchcodec": "lerobot",
    "jax": "kinetix",
    "kinetix-env": "kinetix",
}


class Skipped(Exception):
    """A check that cannot run here, and why; not a failure."""


def collect_report() -> dict[str, Any]:
    """Looks at everything and runs the self-test; takes the time of `import torch` and about 2 s.

    The report is a dictionary that JSON can hold:
        ok: no check failed.
        robostack, python, platform: versions.
        machine: processor, cores and system; memory_gib.
        packages: name → {"version": str | None, "extra": str | None}.
        gl: {"backend": str | None, "hint": str | None}, for rendering.
        accelerators: [{"name", "memory_gib"}], empty without a GPU.
        video: {"h264", "vp9", "torchcodec"} → "yes" or why not.
        cache: {"path", "writable"}.
        checks: [{"name", "outcome": "ok" | "failed" | "skipped", "seconds", "reason"}].
        self_test_s: seconds the checks took together.
    """
    report = {
        "robostack": _version("robostack"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": describe_machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "packages": {name: {"version": _version(name), "extra": extra} for name, extra in PACKAGES.items()},
        "gl": _gl(),
        "accelerators": _accelerators(),
        "video": _video(),
        "cache": _cache(),
    }
    checks = [_run(name, check) for name, check in CHECKS.items()]
    return {
        "ok": all(check["outcome"] != "failed" for check in checks),
        **report,
        "checks": checks,
        "self_test_s": round(sum(check["seconds"] for check in checks), 2),
    }


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Shows a report of `collect_report` as tables."""
    missing = Text("not installed", "dim")

    def text(of: str, style: str = "") -> Text:
        return Text(printable(of), style)

    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("robostack", text(f"{report['robostack'] or 'not installed'}, Python {report['python']}"))
    facts.add_row("machine", text(f"{report['machine']}, {report['memory_gib']} GiB; {report['platform']}"))
    gpus = [f"{gpu['name']}, {gpu['memory_gib']} GiB" for gpu in report["accelerators"]]
    facts.add_row("accelerators", text("; ".join(gpus) or "none"))
    facts.add_row("OpenGL", text(report["gl"]["backend"] or f"none: {report['gl']['hint']}"))
    facts.add_row("video", text("; ".join(f"{name}: {state}" for name, state in report["video"].items())))
    cache = report["cache"]
    facts.add_row("cache", text(f"{cache['path']}, {'writable' if cache['writable'] else 'not writable'}"))
    console.print(facts)

    packages = Table("package", "version", "extra", title="Packages", title_justify="left")
    for name, package in report["packages"].items():
        extra = text(f"robostack[{package['extra']}]") if package["extra"] else ""
        packages.add_row(text(name), text(package["version"]) if package["version"] else missing, extra)
    console.print(packages)

    colours = {"ok": "green", "failed": "bold red", "skipped": "yellow"}
    checks = Table("check", "outcome", "seconds", "reason", title="Self-test", title_justify="left")
    checks.columns[2].justify = "right"
    for check in report["checks"]:
        outcome = text(check["outcome"], colours[check["outcome"]])
        checks.add_row(text(check["name"]), outcome, f"{check['seconds']:.2f}", text(check["reason"]))
    console.print(checks)
    failed = sum(check["outcome"] == "failed" for check in report["checks"])
    verdict = (f"{failed} failed", "bold red") if failed else ("nothing failed", "green")
    console.print(Text.assemble("Self-test: ", verdict, f" in {report['self_test_s']:.1f} s"))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gl() -> dict[str, str | None]:
    from robostack.envs.gl import require_gl

    try:
        return {"backend": require_gl(), "hint": None}
    except RuntimeError as error:
        return {"backend": None, "hint": one_line(error)}


def _accelerators() -> list[dict[str, Any]]:
    try:
        import torch
    except (ImportError, OSError):
        return []  # the self-test says why
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_gib": round(device.total_memory / 2**30, 1)} for device in devices]


def _video() -> dict[str, str]:
    found = {"h264": "no PyAV", "vp9": "no PyAV", "torchcodec": "not installed"}
    if _version("av"):
        import av

        for name, encoder in (("h264", "libx264"), ("vp9", "libvpx-vp9")):
            writes, reads = encoder in av.codecs_available, name in av.codecs_available
            found[name] = "yes" if writes and reads else "decoder only" if reads else "no"
    if _version("torchcodec"):
        try:
            import torchcodec  # noqa: F401

            found["torchcodec"] = "yes"
        except (ImportError, OSError, RuntimeError):
            found["torchcodec"] = "does not load (it needs FFmpeg on the system)"
    return found


def _cache() -> dict[str, Any]:
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return {"path": str(path), "writable": True}
    except OSError:
        return {"path": str(path), "writable": False}


def _run(name: str, check: Callable[[], None]) -> dict[str, Any]:
    started = time.perf_counter()
    outcome, reason = "ok", ""
    try:
        check()
    except (Skipped, MissingExtraError) as error:
        outcome, reason = "skipped", one_line(error)
    except Exception as error:  # whatever breaks is what the doctor is here to find
        outcome, reason = "failed", f"{type(error).__name__}: {one_line(error)}"
    return {
        "name": name,
        "outcome": outcome,
        "seconds": round(time.perf_counter() - started, 3),
        "reason": reason,
    }


def _check_torch() -> None:
    _check_matmul("cpu")


def _check_accelerators() -> None:
    import torch

    if not torch.cuda.is_available():
        raise Skipped("no accelerator")
    for index in range(torch.cuda.device_count()):
        _check_matmul(f"cuda:{index}")


def _check_matmul(device: str) -> None:
    """A product in float32 against the same in float64."""
    import torch

    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = (a.float().to(device) @ b.float().to(device)).cpu()
    error = (product - a @ b).abs().max().item()
    if not error < 0.2:  # float32 gives 1e-4, and TF32, which some devices default to, 4e-2
        raise ArithmeticError(f"expected a float32 product within 0.2 of float64 on {device}, got {error:.3g}")


def _check_zarr() -> None:
    import numpy as np
    import zarr

    values = np.arange(1000, dtype=np.float32).reshape(100, 10)
    with tempfile.TemporaryDirectory() as folder:
        zarr.open_group(folder, mode="w").create_array("values", data=values, chunks=(50, 10))
        read = zarr.open_group(folder, mode="r")["values"]
        if not (isinstance(read, zarr.Array) and np.array_equal(np.asarray(read[:]), values)):
            raise OSError(f"expected zarr to read back what it wrote to {folder}, got something else")


def _check_simulation() -> None:
    import numpy as np

    env = _make_aloha()
    first, _ = env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(first["observation.state"])  # hold the start pose
    moved = np.abs(observation["observation.state"] - first["observation.state"]).max()
    if not moved < 0.1:
        raise ArithmeticError(f"expected the arms to hold their pose for 20 steps, they moved by {moved:.3g}")


def _check_rendering() -> None:
    if (hint := _gl()["hint"]) is not None:
        raise Skipped(hint)
    env = _make_aloha()
    env.reset(seed=0)

    from robostack.envs.aloha.cameras import parse_camera

    frame = env.get_wrapper_attr("render_camera")(parse_camera("top:64x64"))
    env.close()
    if frame.shape != (64, 64, 3) or frame.std() < 1:
        raise RuntimeError(f"expected a 64x64 picture with something on it, got {frame.shape} all alike")


def _make_aloha() -> Any:
    require_extra("gym_aloha", "aloha")
    from robostack import envs

    return envs.make("aloha-transfer-cube")


def _check_video() -> None:
    import numpy as np

    from robostack.datasets.formats.video import read_frames, write_video

    frames = np.zeros((5, 64, 64, 3), np.uint8) + np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None]
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "a.mp4", frames, 25)
        read, _ = read_frames(Path(folder) / "a.mp4")
    if read.shape != frames.shape or np.abs(read.astype(int) - frames).max() > 20:
        raise OSError(f"expected the video to give back its 5 frames, got {read.shape}")


CHECKS: Mapping[str, Callable[[], None]] = {
    "torch on the processor": _check_torch,
    "torch on accelerators": _check_accelerators,
    "zarr on disk": _check_zarr,
    "ALOHA, 20 control steps": _check_simulation,
    "ALOHA, a rendered frame": _check_rendering,
    "video, written and read": _check_video,
}
