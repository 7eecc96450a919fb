"""Small inputs of every kind that robostack reads, and ways to damage them, for the trials of `fuzz_trials`.

What is damaged, where and how follows from a generator: a trial is repeated by its number. Beside the inputs lies a
folder that none of them is part of, with valid files that hold the text `MARKER`: what is found of it in an output
was read where nothing was to be read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

MARKER = "marker-7f3a-of-another-file"
SENTINEL = 12345.678
"""A number that only files outside hold."""
TEXT_SUFFIXES = (".json", ".jsonl", ".zarray", ".zattrs", ".zgroup")
STATE, ACTION, TOP, DEPTH = "observation.state", "action", "observation.images.top", "observation.images.depth"
LENGTHS = (7, 9)


# ---- inputs


def build(folder: Path, kinds: Collection[str], marked: bool = False) -> None:
    """Writes inputs of these kinds into a folder each under `folder`; the marked ones are for outside."""
    for name, make in INPUTS.items():
        if name not in kinds:
            continue
        make(folder / name, MARKER if marked else "lift the lid", SENTINEL if marked else 0.0)
    (folder / "text").write_text(f'{MARKER}\n{{"task": "{MARKER}"}}\n')


def _columns(length: int, seed: int, more: float, depth: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(0, 0.02, (length, 3)), axis=0).astype(np.float32) + np.float32(more)
    y, x = np.mgrid[0:32, 0:36]
    frames = np.stack([np.stack([x * 6 + i, y * 6 + seed, x + y + 3 * i], axis=-1) for i in range(length)])
    columns = {
        STATE: state,
        ACTION: (state[:, :2] + 0.01).astype(np.float32),
        TOP: frames.astype(np.uint8),
        "next.reward": np.linspace(0, 1, length, dtype=np.float32),
    }
    return columns | ({DEPTH: (500 + frames[..., :1]).astype(np.uint16)} if depth else {})


def _features(depth: bool) -> dict[str, Any]:
    from robostack.datasets.episodes import Feature

    features = {
        STATE: Feature((3,), "float32", ("waist", "elbow", "wrist"), ("rad", "rad", "rad")),
        ACTION: Feature((2,), "float32", ("waist", "elbow"), ("rad", "rad")),
        TOP: Feature((32, 36, 3), "uint8"),
        "next.reward": Feature((), "float32"),
    }
    return features | ({DEPTH: Feature((32, 36, 1), "uint16", (), ("mm",))} if depth else {})


def _store(path: Path, task: str, more: float) -> None:
    from robostack.datasets.store import EpisodeWriter

    writer = EpisodeWriter(path, _features(depth=True), fps=10, provenance={"seeds": [0, 1]}, robot="arm")
    for seed, length in enumerate(LENGTHS):
        writer.append(_columns(length, seed, more, depth=True), [task] * (length - 2) + ["let go"] * 2)
    writer.finish()


def _lerobot(images: str, codec: str = "libx264") -> Callable[[Path, str, float], None]:
    def write(path: Path, task: str, more: float) -> None:
        from robostack.datasets.formats.lerobot.writer import LeRobotWriter

        chosen: dict[str, Any] = {"images": images} | ({"codec": codec} if images == "video" else {})
        writer = LeRobotWriter(path, _features(depth=False), fps=10, robot="arm", **chosen)
        for seed, length in enumerate(LENGTHS):
            writer.append(_columns(length, seed, more, depth=False), [task] * (length - 2) + ["let go"] * 2)
        writer.finish()

    return write


def _lerobot_v21(images: str) -> Callable[[Path, str, float], None]:
    def write(path: Path, task: str, more: float) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from robostack.datasets.formats.video import write_video

        described: dict[str, Any] = {
            key: {"dtype": feature.dtype, "shape": list(feature.shape) or [1], "names": list(feature.names) or None}
            for key, feature in _features(depth=False).items()
        }
        described[TOP] |= {"dtype": images, "names": ["height", "width", "channels"]}
        for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            described[key] = {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
        (path / "meta").mkdir(parents=True)
        (path / "data" / "chunk-000").mkdir(parents=True)
        first = 0
        for episode, length in enumerate(LENGTHS):
            columns = _columns(length, episode, more, depth=False)
            table = {key: pa.array(list(columns[key])) for key in (STATE, ACTION)}
            table["next.reward"] = pa.array(columns["next.reward"])
            if images == "image":
                table[TOP] = pa.array([{"bytes": _png(frame), "path": None} for frame in columns[TOP]])
            else:
                folder = path / "videos" / "chunk-000" / TOP
                folder.mkdir(parents=True, exist_ok=True)
                write_video(folder / f"episode_{episode:06d}.mp4", columns[TOP], 10)
            table["timestamp"] = pa.array(np.arange(length, dtype=np.float32) / 10)
            table["frame_index"] = pa.array(np.arange(length))
            table["episode_index"] = pa.array(np.full(length, episode))
            table["index"] = pa.array(first + np.arange(length))
            table["task_index"] = pa.array(np.repeat([0, 1], [length - 2, 2]))
            pq.write_table(pa.table(table), path / "data" / "chunk-000" / f"episode_{episode:06d}.parquet")
            first += length
        info = {
            "codebase_version": "v2.1",
            "robot_type": "arm",
            "total_episodes": len(LENGTHS),
            "total_frames": first,
            "total_tasks": 2,
            "total_chunks": 1,
            "chunks_size": 1000,
            "fps": 10,
            "splits": {"train": f"0:{len(LENGTHS)}"},
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            "features": described,
        }
        (path / "meta" / "info.json").write_text(json.dumps(info, indent=2))
        tasks = [{"task_index": i, "task": text} for i, text in enumerate((task, "let go"))]
        episodes = [
            {"episode_index": i, "tasks": [task, "let go"], "length": length} for i, length in enumerate(LENGTHS)
        ]
        for name, lines in (("tasks", tasks), ("episodes", episodes)):
            (path / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write


def _aloha(images: str) -> Callable[[Path, str, float], None]:
    def write(path: Path, task: str, more: float) -> None:
        from robostack.datasets.formats import Recording, create_writer

        names = [f"{side}_{joint}" for side in ("left", "right") for joint in "abcdefg"]
        from robostack.datasets.episodes import Feature

        features = {key: Feature((14,), "float32", tuple(names)) for key in (STATE, ACTION)}
        features[TOP] = Feature((32, 36, 3), "uint8")
        writer = create_writer("aloha", path, Recording(features, 50, "aloha", {}), images)
        for seed, length in enumerate(LENGTHS):
            columns = _columns(length, seed, more, depth=False)
            joints = np.tile(columns[STATE], (1, 5))[:, :14]
            writer.append({STATE: joints, ACTION: joints, TOP: columns[TOP]}, task)
        writer.finish()

    return write


def _robomimic(path: Path, task: str, more: float) -> None:
    import h5py

    path.mkdir(parents=True)
    with h5py.File(path / "demonstrations.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": task, "env_kwargs": {"control_freq": 20}})
        data.attrs["total"] = sum(LENGTHS)
        for demo, length in enumerate(LENGTHS):
            columns = _columns(length, demo, more, depth=False)
            group = data.create_group(f"demo_{demo}")
            group.attrs["num_samples"] = length
            group["actions"], group["rewards"] = columns[ACTION], columns["next.reward"]
            group["dones"] = np.arange(length) == length - 1
            group["obs/robot0_joint_pos"], group["obs/agentview_image"] = columns[STATE], columns[TOP]
        file["mask/train"] = np.array([b"demo_0", b"demo_1"])


def _diffusion_policy(version: int, zipped: bool = False) -> Callable[[Path, str, float], None]:
    def write(path: Path, task: str, more: float) -> None:
        import zarr

        folder = path / "replay"
        root: Any = zarr.create_group(store=str(folder), zarr_format=version)  # pyright: ignore[reportArgumentType]
        episodes = [_columns(length, seed, more, depth=False) for seed, length in enumerate(LENGTHS)]
        arrays = {"img": TOP, "state": STATE, "action": ACTION}
        for name, key in arrays.items():
            rows = np.concatenate([columns[key] for columns in episodes])
            array = root.create_array(
                f"data/{name}", shape=rows.shape, chunks=(8, *rows.shape[1:]), dtype=rows.dtype.name
            )
            array[:] = rows
        ends = root.create_array("meta/episode_ends", shape=(len(LENGTHS),), chunks=(8,), dtype="int64")
        ends[:] = np.cumsum(LENGTHS)
        if zipped:
            with zipfile.ZipFile(path / "replay.zarr.zip", "w") as archive:
                for file in sorted(folder.rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(folder).as_posix())
            shutil.rmtree(folder)

    return write


def _run(path: Path, task: str, more: float) -> None:
    """A finished run of training, with the data it was trained on beside it."""
    from robostack.policies.act import ActConfig
    from robostack.training.config import TrainConfig
    from robostack.training.trainer import train

    data = path / "data"
    _store(data, task, more)
    config = ActConfig(
        chunk_len=4, execute_len=2, width=16, hidden=16, posterior_depth=1, encoder_depth=1, decoder_depth=1
    )
    train("act", config, TrainConfig(data=(data,), out=path / "run", steps=2, batch=2, log_every=1, device="cpu"))


def _expert(path: Path, task: str, more: float) -> None:
    """A checkpoint as an expert's training writes it."""
    import jax
    from safetensors.numpy import save_file

    from robostack.common.serialize import to_json
    from robostack.common.tensors import Seal
    from robostack.experts.ppo.checkpoint import FORMAT, tensors_of
    from robostack.experts.ppo.config import ExpertConfig, PpoConfig
    from robostack.experts.ppo.network import ActorCritic, RunningStatistics

    ppo = PpoConfig(widths=(8, 8))
    config = ExpertConfig(env="kinetix-s-h6_unicycle_right", out=Path("expert"), ppo=ppo)
    folder = path / "run" / "checkpoints" / "update-00000002"
    folder.mkdir(parents=True)
    network = ActorCritic.initial(jax.random.PRNGKey(0), 6, 2, ppo.widths, ppo.deviation)
    tensors = tensors_of((network, RunningStatistics.initial(6)))
    save_file(tensors, folder / "expert.safetensors")
    save_file({"step": np.zeros(1, np.float32)}, folder / "training.safetensors")
    description = {
        "format": str(FORMAT),
        "config": to_json(config),
        "update": 2,
        "observation": 6,
        "used": [True, True],
        "evaluation": {
            "episodes": 4,
            "successes": 4,
            "success": 1.0,
            "success_interval": [0.4, 1.0],
            "mean_return": 1.0,
            "mean_length": 30.0,
        },
        "training": {
            "cpu_s": 1.0,
            "time_s": 1.0,
            "command": task,
            "commit": "0",
            "machine": "m",
            "date": "d",
            "resumed": [],
        },
        "files": to_json({file.name: Seal.of(file) for file in sorted(folder.glob("*.safetensors"))}),
    }
    (folder / "expert.json").write_text(json.dumps(description, indent=1) + "\n")
    (path / "run" / "log.jsonl").write_text(json.dumps({"update": 1, "success": 0.5}) + "\n")


def evaluation_settings() -> Any:
    from robostack.evaluation.ledger import EpisodeSettings

    chosen: dict[str, Any] = {"execute_len": None, "ensemble": None, "target_return": None, "device": "cpu"}
    return EpisodeSettings("expert", "aloha-transfer-cube", 1000, 4, **chosen)


def _evaluation(path: Path, task: str, more: float) -> None:
    """An evaluation that was interrupted after three of its four episodes."""
    from robostack.evaluation.ledger import Ledger
    from robostack.evaluation.rollout import Outcome

    ledger = Ledger(path / "evaluation", evaluation_settings())
    for seed in range(1000, 1003):
        ledger.append(Outcome(seed, True, False, 4, 2, 300, None, 1.5 + more, (1.0, 2.0)))


INPUTS: dict[str, Callable[[Path, str, float], None]] = {
    "store": _store,
    "lerobot-png": _lerobot("png"),
    "lerobot-video": _lerobot("video"),
    "lerobot-av1": _lerobot("video", "libsvtav1"),
    "lerobot-2.1-png": _lerobot_v21("image"),
    "lerobot-2.1-video": _lerobot_v21("video"),
    "aloha": _aloha("raw"),
    "aloha-jpeg": _aloha("jpeg"),
    "robomimic": _robomimic,
    "diffusion-policy-2": _diffusion_policy(2),
    "diffusion-policy-3": _diffusion_policy(3),
    "diffusion-policy-zip": _diffusion_policy(2, zipped=True),
    "run": _run,
    "expert": _expert,
    "evaluation": _evaluation,
}


# ---- damage


def damage(folder: Path, outside: Path, rng: np.random.Generator) -> list[str]:
    """Damages one to three files of an input; says what was done."""
    done = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        files = sorted(path for path in folder.rglob("*") if _whole(path))
        if not files:
            break
        # What describes the rest is small, read first and believed: half of the damage goes there.
        described = [file for file in files if file.suffix in TEXT_SUFFIXES or file.name in TEXT_SUFFIXES]
        file = _pick(rng, described if described and rng.random() < 0.5 else files)
        kinds = [_bytes_of, _bytes_of, _place_of]
        if file in described:
            kinds = [_json_of, _json_of, _json_of, _json_of, _bytes_of, _place_of]
        inner = {".parquet": _table_of, ".hdf5": _hdf5_of, ".safetensors": _tensors_of, ".zip": _zip_of}
        if file.suffix in inner:
            kinds = [inner[file.suffix]] * 3 + kinds
        kind = _pick(rng, kinds)
        try:
            what = kind(file, folder, outside, rng)
        except Exception as error:  # of what an earlier damage left, there is nothing to change in this way
            what = f"nothing ({type(error).__name__}), then " + _bytes_of(file, folder, outside, rng)
        done.append(f"{file.relative_to(folder)}: {what}")
    return done


def _whole(path: Path) -> bool:
    """Whether a file is one, and not yet damaged to something that has no bytes, or a terabyte of them."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 28


def _pick[T](rng: np.random.Generator, things: list[T] | tuple[T, ...]) -> T:
    return things[int(rng.integers(len(things)))]


def _bytes_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    data = bytearray(file.read_bytes())
    size = len(data)
    kind = _pick(rng, ["flip", "flip", "flip", "cut", "cut", "zero half", "twice", "swap", "insert", "noise", "empty"])
    if kind == "flip":
        places = rng.integers(max(size, 1), size=int(rng.integers(1, 17)))
        for place in places[: size and None]:
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[int(rng.integers(size + 1)) :]
    elif kind == "zero half":
        start = _pick(rng, [0, size // 2])
        data[start : start + size // 2] = bytes(size // 2)
    elif kind == "twice":
        data = data + data
    elif kind == "swap":
        alike = sorted(path for path in folder.rglob(f"*{file.suffix}") if path != file and _whole(path))
        if alike:
            other = _pick(rng, alike)
            data, swapped = bytearray(other.read_bytes()), bytes(data)
            other.write_bytes(swapped)
    elif kind == "insert":
        place = int(rng.integers(size + 1))
        data[place:place] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == "noise":
        data = bytearray(rng.bytes(size))
    else:
        data.clear()
    file.write_bytes(bytes(data))
    return kind


def _place_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    """What stands where the file stood."""
    kinds = ["missing", "fifo", "/dev/zero", "/dev/urandom", "outside text", "outside twin", "folder", "loop", "sparse"]
    kind = _pick(rng, [*kinds, "dangling", "socket", "parent missing"])
    if kind == "parent missing" and file.parent != folder:
        shutil.rmtree(file.parent)
        return kind
    file.unlink()
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "/dev/zero" | "/dev/urandom":
            file.symlink_to(kind)
        case "outside text":
            file.symlink_to(outside / "text")
        case "outside twin":
            file.symlink_to(outside / folder.name / file.relative_to(folder))
        case "folder":
            file.mkdir()
        case "loop":
            file.symlink_to(file.name)
        case "dangling":
            file.symlink_to("nowhere")
        case "sparse":
            file.touch()
            os.truncate(file, 1 << 40)
        case "socket":
            import socket

            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(os.path.relpath(file))
    return kind


# ---- damage to JSON


def _json_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    """One value of a JSON file replaced, removed, or another put beside it."""
    text = file.read_text()
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    number = int(rng.integers(len(lines)))
    value = json.loads(lines[number])
    value, what = change_value(value, folder, outside, rng)
    lines[number] = json.dumps(value) if not isinstance(value, _Raw) else value.text
    if file.suffix == ".jsonl" and rng.random() < 0.1:
        lines.append(lines[number])
    file.write_text("\n".join(lines) + "\n", errors="surrogatepass")
    return what


class _Raw:
    """Text that json.dumps would not write."""

    def __init__(self, text: str) -> None:
        self.text = text


def change_value(value: Any, folder: Path, outside: Path, rng: np.random.Generator) -> tuple[Any, str]:
    if rng.random() < 0.04:
        return _Raw(
            _pick(rng, ["[" * 100_000, '{"a":' * 50_000, "9" * 10_000, "", "null", "[]", '"text"'])
        ), "other text"
    places = list(_places(value))
    place = _pick(rng, places)
    old = value
    for key in place:
        old = old[key]
    if isinstance(old, str) and rng.random() < 0.7:
        new: Any = _pick(rng, _texts(old, folder, outside))
    elif isinstance(old, (int, float)) and rng.random() < 0.6:
        new = _pick(rng, [0, -1, 1, old + 1, -old, old * 1e9, 10**30, 2**31, 2**63, 1e308, 0.5, 1e-300, *_no_numbers()])
    elif isinstance(old, list) and rng.random() < 0.5:
        new = _pick(rng, [[], old + old, old[:-1], old[::-1], [old], old * 1000, [None] * len(old), [*old, -1]])
    elif isinstance(old, dict) and rng.random() < 0.6:
        new = dict(old)
        keys = list(old)
        key = _pick(rng, keys) if keys else "new"
        change = _pick(rng, ["remove", "rename", "add"])
        moved = new.pop(key, None) if change != "add" else new.get(key)
        if change != "remove":
            new[_pick(rng, _texts(key, folder, outside))] = moved
    else:
        new = _pick(rng, [None, True, False, 0, -1, 3.5, "", "text", [], {}, [[]], {"a": 1}, [1, "a", None]])
    shown = repr(new)
    what = f"{'.'.join(map(str, place)) or 'all'} := {shown[:60]}"
    if not place:
        return new, what
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = new
    return value, what


def _no_numbers() -> list[Any]:
    return [float("nan"), float("inf"), -float("inf"), "1", True, None, [1]]


def _texts(old: str, folder: Path, outside: Path) -> list[str]:
    """What could stand for a name, a path or a template."""
    twin = os.path.relpath(outside / folder.name, folder)
    return [
        "",
        f"{twin}/{old}",
        f"{outside / folder.name}/{old}",
        f"../{old}",
        f"{os.path.relpath(outside, folder)}/text",
        str(outside / "text"),
        "..",
        ".",
        "/",
        "/dev/zero",
        "/etc/passwd",
        f"{old}/../{old}",
        f"{old}\0",
        "[red]text[/] [/bold]",
        "a\u2028b\u0085c",
        "\x1b[31m\r\nline",
        "<script>alert(1)</script>",
        "text" * 5_000,
        "ä\ud800",
        "{episode_index.__class__}",
        "{0}",
        "{unknown}",
        "{episode_index:999999999d}",
        "{file_index:099999999d}",
        old[:-1],
        old.upper(),
        old + "x",
        "float32",
        "object",
        "float99",
        "<U999999999",
        "|V1000000000",
        "type",
        "observation.images.type",
        "action",
        "__class__",
    ]


def _places(value: Any, place: tuple[Any, ...] = ()) -> Any:
    yield place
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*place, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 20)):
            yield from _places(value[index], (*place, index))


# ---- damage to tables, HDF5, tensors and archives that keep their form


def _table_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    name = _pick(rng, table.column_names)
    place = table.column_names.index(name)
    column = table.column(name).to_pylist()
    kinds = ["drop", "null", "texts", "huge", "negative", "reverse", "shift", "lists", "rename", "rows", "one row"]
    if any(isinstance(value, dict) and "bytes" in value for value in column):
        kinds += ["outside path", "bomb", "small picture", "gray", "no bytes"] * 2
    kind = _pick(rng, kinds)
    if kind == "drop":
        changed = table.drop_columns([name])
    elif kind == "rename":
        new = _pick(rng, _texts(name, folder, outside)).encode(errors="replace").decode()
        changed = table.rename_columns([new if column == name else column for column in table.column_names])
    elif kind == "rows":
        changed = pa.concat_tables([table] * 40)
    elif kind == "one row":
        changed = table.slice(0, 1)
    else:
        new_column: list[Any] = list(column)
        row = int(rng.integers(len(column)))
        first = column[0]
        numbers = {
            "null": None,
            "huge": 2**62 if isinstance(first, int) else 1e308,
            "negative": -3 if isinstance(first, int) else -3.5,
            "shift": first + 1 if isinstance(first, (int, float)) else first,
        }
        if kind in numbers:
            value = numbers[kind]
            value = value if not isinstance(first, list) or value is None else [float(value)] * len(first)
            rows = range(len(column)) if rng.random() < 0.5 else [row]
            for index in rows:
                new_column[index] = value
        elif kind == "texts":
            new_column = [_pick(rng, _texts("a", folder, outside)).encode(errors="replace").decode() for _ in column]
        elif kind == "reverse":
            new_column.reverse()
        elif kind == "lists":
            new_column = [[1.0, 2.0]] * len(column)
        elif kind == "outside path":
            new_column[row] = {"bytes": None, "path": os.path.relpath(outside / "text", folder)}
        elif kind == "bomb":
            new_column[row] = {"bytes": bomb(), "path": None}
        elif kind == "small picture":
            new_column[row] = {"bytes": _png(np.zeros((3, 5, 3), np.uint8)), "path": None}
        elif kind == "gray":
            new_column[row] = {"bytes": _png(np.zeros((32, 36), np.uint8)), "path": None}
        elif kind == "no bytes":
            new_column[row] = {"bytes": None, "path": None}
        changed = table.set_column(place, name, pa.array(new_column))
    pq.write_table(changed, file)
    return f"{name} {kind}"


def _hdf5_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    import h5py

    with h5py.File(file, "r+") as root:
        names: list[str] = []
        root.visit(names.append)
        name = _pick(rng, names)
        old: Any = root[name]
        attributes = [(holder, key) for holder in ["/", *names] for key in root[holder].attrs]
        kinds = ["remove", "group", "text", "external", "loop", "dangling", "long", "attribute"]
        if isinstance(old, h5py.Dataset) and old.shape:
            kinds += ["shape", "type", "nan", "huge", "storage", "virtual", "scalar", "short", "vlen", "filter"] * 2
        kind = _pick(rng, kinds)
        if kind == "attribute":
            holder, key = _pick(rng, attributes) if attributes else ("/", "new")
            root[holder].attrs[key] = _pick(
                rng, [np.nan, -1, "[red]x[/]", "../text", b"\xff\xfe", np.zeros(3), 2**60, True, h5py.Empty("f4")]
            )
            return f"{holder}@{key}"
        rows = old[()] if isinstance(old, h5py.Dataset) else np.zeros((3, 2), np.float32)
        del root[name]
        twin = outside / folder.name / file.relative_to(folder)
        match kind:
            case "group":
                root.create_group(name)
            case "text":
                root[name] = _pick(rng, ["text", "[red]", b"\xff"])
            case "external":
                root[name] = h5py.ExternalLink(_pick(rng, [str(twin), os.path.relpath(twin, file.parent)]), name)
            case "loop":
                root[name] = h5py.SoftLink(f"/{name}")
            case "dangling":
                root[name] = h5py.SoftLink("/nowhere")
            case "long":
                root[name] = np.concatenate([rows] * 3) if rows.ndim else np.zeros(5)
            case "shape":
                root[name] = rows.reshape(-1)[:5]
            case "type":
                root[name] = rows.astype(_pick(rng, ["S3", "complex64", "bool", "int8", "float16", "uint64"]))
            case "nan":
                root[name] = np.full(rows.shape, np.nan, np.float32)
            case "huge":
                shape = (_pick(rng, [10**6, 10**9, 10**12]), *rows.shape[1:])
                root.create_dataset(name, shape, rows.dtype, chunks=True)
            case "storage":
                made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                made.set_external(os.fsencode(outside / "text"), 0, h5py.h5f.UNLIMITED)
                made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # or making it would write zeros outside
                space, kind_of_number = h5py.h5s.create_simple(rows.shape), h5py.h5t.py_create(rows.dtype)
                parent = root[name.rpartition("/")[0] or "/"]
                h5py.h5d.create(parent.id, name.rpartition("/")[2].encode(), kind_of_number, space, made)
            case "virtual":
                layout = h5py.VirtualLayout(rows.shape, rows.dtype)
                layout[...] = h5py.VirtualSource(str(twin), name, rows.shape)
                root.create_virtual_dataset(name, layout)
            case "scalar":
                root[name] = 1.0
            case "short":
                root[name] = rows[:1]
            case "vlen":
                ragged = root.create_dataset(name, (len(rows),), h5py.vlen_dtype(np.uint8))
                ragged[0] = np.frombuffer(bomb(), np.uint8)
            case "filter":
                root.create_dataset(name, data=rows, chunks=True, compression="gzip", fletcher32=True)
        return f"{name} {kind}"


def _tensors_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    """The header is JSON, and says where each tensor lies."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header, what = change_value(header, folder, outside, rng)
    text = (header.text if isinstance(header, _Raw) else json.dumps(header)).encode(errors="replace")
    size = len(text) if rng.random() < 0.9 else _pick(rng, [0, 2**63, len(text) - 1, 10**9])
    file.write_bytes(struct.pack("<Q", size) + text + body)
    return f"header {what}"


def _zip_of(file: Path, folder: Path, outside: Path, rng: np.random.Generator) -> str:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = _pick(rng, sorted(members))
    kind = _pick(rng, ["remove", "flip", "bomb", "rename", "twice", "json", "json", "json", "method"])
    method, renamed = zipfile.ZIP_STORED, name
    if kind == "remove":
        del members[name]
    elif kind == "flip":
        data = bytearray(members[name])
        for place in rng.integers(max(len(data), 1), size=4)[: len(data) and None]:
            data[place] ^= 1 << int(rng.integers(8))
        members[name] = bytes(data)
    elif kind == "bomb":
        members[name], method = bytes(300 << 20), zipfile.ZIP_DEFLATED
    elif kind == "rename":
        renamed = _pick(rng, _texts(name, folder, outside)).encode(errors="replace").decode()
        members[renamed] = members.pop(name)
    elif kind == "method":
        method = zipfile.ZIP_LZMA
    elif kind == "json":
        described = [member for member in sorted(members) if member.rsplit("/", 1)[-1] in TEXT_SUFFIXES]
        name = _pick(rng, described)
        value, what = change_value(json.loads(members[name]), folder, outside, rng)
        text = value.text if isinstance(value, _Raw) else json.dumps(value)
        members[name], kind = text.encode(errors="replace"), what
    with zipfile.ZipFile(file, "w", method) as archive:
        for member, data in members.items():
            archive.writestr(member, data, compress_type=method)
        if kind == "twice":
            archive.writestr(name, b"{}")
    return f"{name} {kind}"


def bomb(side: int = 13_000) -> bytes:
    """A PNG of some kilobytes that unpacks to side² pixels of three bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    global _BOMB
    if not _BOMB:
        pressed = zlib.compressobj(9)
        line = bytes(1 + 3 * side)
        body = b"".join(pressed.compress(line) for _ in range(side)) + pressed.flush()
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        _BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return _BOMB


_BOMB = b""


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
