"""Joins the pieces that `writer` wrote, one folder per episode, to a LeRobot data set."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robostack.datasets.formats.lerobot import layout, places, statistics
from robostack.datasets.formats.lerobot.features import numbers
from robostack.datasets.formats.lerobot.settings import (
    CODECS,
    DATA_FILE,
    MEGABYTE,
    VIDEO_FILE,
    Settings,
    parquet_writer,
    table_schema,
    write_json,
)
from robostack.datasets.formats.video import exact_rate, join_videos

_EPISODES_A_ROW_GROUP = 100


@dataclass(frozen=True)
class Assembly:
    """Writes data/, videos/ and meta/ into `path`; meta/info.json, by which a data set is found, last."""

    path: Path
    settings: Settings
    pieces: Sequence[Path]
    tasks: Mapping[str, int]

    def write(self) -> None:
        placed = self._join_rows()
        for key in self.settings.in_video:
            for row, more in zip(placed, self._join_videos(key), strict=True):
                row |= more
        pictures = self._write_episodes(placed)
        self._write_tasks()
        numbers = [key for key, feature in self.settings.columns.items() if not feature.is_camera]
        found = {key: statistics.of_numbers(self._column(key)) for key in numbers}
        frames = found["index"]["count"][0]
        found |= {key: total.result() for key, total in pictures.items()}
        write_json(self.path / "meta/stats.json", found)
        write_json(self.path / "meta/info.json", self._info(frames))

    def _described(self, episode: int) -> dict[str, Any]:
        return json.loads((self.pieces[episode] / "episode.json").read_text())

    def _join_rows(self) -> list[dict[str, Any]]:
        """Writes data/; gives where each episode lies in it."""
        import pyarrow.parquet as pq

        pieces = [piece / "data.parquet" for piece in self.pieces]
        files = _fill([piece.stat().st_size for piece in pieces], DATA_FILE)
        for file, some in itertools.groupby(zip(files, pieces, strict=True), key=lambda pair: pair[0]):
            with parquet_writer(self.path / places.DATA_PATH.format(**file), table_schema(self.settings)) as writer:
                for _, piece in some:
                    rows = pq.ParquetFile(piece)
                    for group in range(rows.num_row_groups):
                        writer.write_table(rows.read_row_group(group).cast(table_schema(self.settings)))
        return [{f"data/{name}": index for name, index in file.items()} for file in files]

    def _join_videos(self, key: str) -> list[dict[str, Any]]:
        """Writes the videos of a camera; gives where each episode lies in them."""
        pieces = [piece / f"{key}.mp4" for piece in self.pieces]
        files = _fill([piece.stat().st_size for piece in pieces], VIDEO_FILE)
        lengths = [self._described(episode)["length"] for episode in range(len(self.pieces))]
        rate = exact_rate(self.settings.fps)
        placed = []
        for file, some in itertools.groupby(range(len(self.pieces)), key=lambda episode: files[episode]):
            target = self.path / places.VIDEO_PATH.format(video_key=key, **file)
            target.parent.mkdir(parents=True, exist_ok=True)
            inside = list(some)
            join_videos(target, [(pieces[episode], lengths[episode]) for episode in inside], rate)
            before = 0
            for episode in inside:
                bounds = {"from_timestamp": before, "to_timestamp": before + lengths[episode]}
                times = {name: float(frames / rate) for name, frames in bounds.items()}
                placed.append({f"videos/{key}/{name}": value for name, value in {**file, **times}.items()})
                before += lengths[episode]
        return placed

    def _write_episodes(self, placed: Sequence[Mapping[str, Any]]) -> dict[str, statistics.PictureStatistics]:
        """Writes meta/episodes; gives the statistics of all pictures."""
        import pyarrow as pa

        cameras = {key: self.settings.features[key] for key in self.settings.cameras}
        total = {key: statistics.PictureStatistics(feature) for key, feature in cameras.items()}
        place = {"chunk_index": 0, "file_index": 0}
        path, begin, first = self.path / places.EPISODES_PATH.format(**place), 0, 0
        writer = schema = None
        while first < len(self.pieces):
            rows: dict[str, list] = {}
            for episode in range(first, min(first + _EPISODES_A_ROW_GROUP, len(self.pieces))):
                described = self._described(episode)
                found = described["numbers"]
                for key, counted in described["pictures"].items():
                    of_episode = statistics.PictureStatistics(cameras[key])
                    for some in (of_episode, total[key]):
                        some.add_json(counted)
                    found[key] = of_episode.result()
                row = {"episode_index": episode, "tasks": described["tasks"], "length": described["length"]}
                row |= placed[episode]
                row |= {"dataset_from_index": begin, "dataset_to_index": begin + described["length"]}
                row |= {f"stats/{key}/{name}": value for key, some in found.items() for name, value in some.items()}
                row |= {f"meta/episodes/{name}": index for name, index in place.items()}
                begin += described["length"]
                for name, value in row.items():
                    rows.setdefault(name, []).append(value)
            table = pa.table(rows, schema=schema)
            if writer is None:
                schema = table.schema
                writer = parquet_writer(path, schema)
            writer.write_table(table)
            first += _EPISODES_A_ROW_GROUP
            if first >= len(self.pieces) or path.stat().st_size >= DATA_FILE:
                writer.close()
                writer, place = None, _next_file(place)
                path = self.path / places.EPISODES_PATH.format(**place)
        return total

    def _write_tasks(self) -> None:
        """As pandas writes a table whose index is the text."""
        import pyarrow as pa

        names = {"task_index": "int64", "task": "object"}
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": name,
                    "field_name": name,
                    "pandas_type": "int64" if kind == "int64" else "unicode",
                    "numpy_type": kind,
                    "metadata": None,
                }
                for name, kind in names.items()
            ],
            "pandas_version": "2.0.0",
        }
        table = pa.table({"task_index": list(self.tasks.values()), "task": list(self.tasks)})
        table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
        with parquet_writer(self.path / "meta/tasks.parquet", table.schema) as writer:
            writer.write_table(table)

    def _column(self, key: str) -> Iterator[np.ndarray]:
        """A column of numbers over all episodes, one after the other."""
        import pyarrow.parquet as pq

        for path in sorted((self.path / "data").glob("*/*.parquet")):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=[key])
                    yield numbers(table, key, self.settings.columns[key])

    def _info(self, frames: int) -> dict[str, Any]:
        settings = self.settings
        described = {}
        for key, feature in settings.columns.items():
            names: list[str] | None = list(feature.names) or None
            dtype, shape = feature.dtype, feature.shape or (1,)
            if feature.is_camera:
                dtype, names = "video" if key in settings.in_video else "image", ["height", "width", "channels"]
            described[key] = {"dtype": dtype, "shape": list(shape), "names": names}
            if key in settings.in_video:
                described[key]["info"] = self._video_info(key)
            if feature.is_depth:
                unit = feature.units[0] if feature.units else None
                described[key]["info"] = {"is_depth_map": True, **({"depth_unit": unit} if unit == "mm" else {})}
        return {
            "codebase_version": "v3.0",
            "fps": _number(settings.fps),
            "features": described,
            "total_episodes": len(self.pieces),
            "total_frames": frames,
            "total_tasks": len(self.tasks),
            "chunks_size": layout.FILES_A_CHUNK,
            "data_files_size_in_mb": DATA_FILE // MEGABYTE,
            "video_files_size_in_mb": VIDEO_FILE // MEGABYTE,
            "data_path": places.DATA_PATH,
            "video_path": places.VIDEO_PATH if settings.in_video else None,
            "robot_type": settings.robot,
            "splits": {"train": f"0:{len(self.pieces)}"},
        }

    def _video_info(self, key: str) -> dict[str, Any]:
        import av

        codec = CODECS[self.settings.codec]
        with av.open(
            str(self.path / places.VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=0))
        ) as container:
            stream = container.streams.video[0]
            found = {
                "height": stream.height,
                "width": stream.width,
                "codec": stream.codec.canonical_name,
                "pix_fmt": stream.pix_fmt,
                "fps": _number(self.settings.fps),
                "channels": 3,
                "g": codec.key_frames,
                "crf": int(codec.options["crf"]),
                "preset": _number(codec.options["preset"]),
                "fast_decode": 0,
                "video_backend": "pyav",
                "extra_options": {},
            }
        return {**{f"video.{name}": value for name, value in found.items()}, "has_audio": False, "is_depth_map": False}


def _fill(sizes: Sequence[int], limit: int) -> list[dict[str, int]]:
    """The file of each piece: a new one begins where the piece would take it to the limit."""
    files, place, filled = [], {"chunk_index": 0, "file_index": 0}, 0
    for size in sizes:
        if filled and filled + size >= limit:
            place, filled = _next_file(place), 0
        files.append(place)
        filled += size
    return files


def _next_file(place: Mapping[str, int]) -> dict[str, int]:
    number = place["chunk_index"] * layout.FILES_A_CHUNK + place["file_index"] + 1
    return {"chunk_index": number // layout.FILES_A_CHUNK, "file_index": number % layout.FILES_A_CHUNK}


def _number(value: float | str) -> int | float | str:
    """A whole number as int, since LeRobot's rates are."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() else value
    return int(value) if value == int(value) else value
