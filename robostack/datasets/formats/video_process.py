"""Decoding of videos that others wrote, in a process that may die of it.

Decoders are C: a few flipped bytes can end the process that decodes them. So a child decodes, sends frames through a
pipe, and serves one video after another; when it dies, hangs, or finds damage, the video is named and another child
goes on. It ends with its parent. A child that had decoded something else before is not believed at once: its memory
may have been damaged by that, so that a new one tries again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from robostack.common.files import check_regular
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError
from robostack.datasets.formats.video import VideoHeader, frames_at, video_header

PATIENCE = 60.0
"""Seconds without a frame after which a child is taken to hang."""
_IDLE = 4
_PIPE = 1 << 20
_BATCH = 1 << 19
"""Bytes of small frames that are sent at once: each sending and each waiting costs as much as decoding 96x96 pixels."""
_MOST_FRAMES = 256
"""Of a batch: Linux writes no more than 1024 parts at once."""
_FRAMES, _ANSWER = b"F", b"A"
_HEAD = struct.Struct("<cQIIIIB")
"""What comes, its bytes, and of frames their number, height, width, channels (0: none) and bytes a number."""


class DecoderDiedError(DataError):
    """The process that decoded ended, or did nothing for too long."""


def decode_at(
    path: Path, due: Sequence[float], tolerance: float, form: str = "rgb24"
) -> Iterator[Shaped[np.ndarray, "height width *channels"]]:
    """As `video.frames_at`, in another process. Raises DataError for whatever is wrong with the video, and OSError
    where it cannot be read."""
    _check_file(path)
    sent = 0
    while True:
        child = _take()
        try:
            child.ask({"path": str(path), "due": list(due), "skip": sent, "tolerance": tolerance, "form": form})
            while isinstance(answer := child.answer(), np.ndarray):
                for frame in answer:
                    sent += 1
                    yield frame
            return
        except DecoderDiedError:
            if not child.is_suspect:
                raise
        finally:
            child.give_back()


def read_header(path: Path) -> VideoHeader:
    """As `video.video_header`, in another process. Raises as `decode_at`."""
    _check_file(path)
    while True:
        child = _take()
        try:
            child.ask({"path": str(path)})
            answer = child.answer()
            assert isinstance(answer, dict)
            end, start, rate = (None if answer[name] is None else Fraction(*answer[name]) for name in _EXACT)
            return VideoHeader(answer["height"], answer["width"], end, start or Fraction(0), rate)
        except DecoderDiedError:
            if not child.is_suspect:
                raise
        finally:
            child.give_back()


_EXACT = ("end", "start", "rate")
"""What of a header is a fraction."""


def _check_file(path: Path) -> None:
    if check_regular(path).st_size == 0:
        raise DataError("the video is empty: restore it from a copy")
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise DataError("the video is a pointer of Git LFS, not the video: fetch it with `git lfs pull`")


# The parent's side


class _Child:
    """A process that decodes, of one video at a time."""

    def __init__(self) -> None:
        search = os.pathsep.join(path or os.getcwd() for path in sys.path)
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from robostack.datasets.formats.video_process import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, **one_thread, "PYTHONPATH": search},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._owner, self._videos = os.getpid(), 0
        self._is_busy, self._is_sound = False, True

    @property
    def is_suspect(self) -> bool:
        """Whether it had decoded something before, that may be what it died of."""
        return self._videos > 1

    def ask(self, request: dict[str, Any]) -> None:
        self._videos += 1
        self._is_busy = True
        text = json.dumps(request).encode()
        try:
            self._in.write(struct.pack("<I", len(text)))
            for first in range(0, len(text), _PIPE):
                self._write(text[first : first + _PIPE])
        except OSError as error:
            raise self._death() from error

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._in.write(data) or 0 :]

    def answer(self) -> np.ndarray | dict[str, Any]:
        """Some frames, or what ends them. Raises DataError for what the child found, DecoderDiedError where it is
        gone."""
        head = bytearray(_HEAD.size)
        self._read(memoryview(head))
        kind, size, count, height, width, channels, itemsize = _HEAD.unpack(head)
        if kind == _FRAMES:
            shape = (count, height, width, channels) if channels else (count, height, width)
            frames = np.empty(shape, np.dtype(f"u{itemsize}"))
            self._read(memoryview(frames).cast("B"))
            return frames
        text = bytearray(size)
        self._read(memoryview(text))
        self._is_busy = False
        answer = json.loads(text)
        if error := answer.get("error"):
            self._is_sound = False  # what it is made of may be damaged too
            raise DataError(error)
        return answer

    def _read(self, view: memoryview) -> None:
        while view:
            if not self._poll.poll(PATIENCE * 1000):
                self._is_sound = False
                raise DecoderDiedError(f"the decoder did nothing for {PATIENCE:.0f} s: the video is damaged")
            count = os.readv(self._out, [view])
            if count == 0:
                raise self._death()
            view = view[count:]

    def _death(self) -> DecoderDiedError:
        self._is_sound = False
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        code = self._process.returncode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        return DecoderDiedError(f"the video is damaged: decoding it ended the decoder ({how})")

    def give_back(self) -> None:
        """Ends what it still does, and keeps it for the next video if it is sound."""
        if self._owner != os.getpid():
            return  # a fork's copy
        try:
            if self._is_sound and self._is_busy:
                self._write(struct.pack("<I", 0))  # nobody wants the rest
                while isinstance(self.answer(), np.ndarray):
                    pass
        except (DataError, OSError):
            self._is_sound = False
        if self._is_sound and len(_children) < _IDLE:
            _children.append(self)
        else:
            self._process.kill()
            self._in.close()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.wait()


_children: list[_Child] = []
"""Idle ones."""


def _take() -> _Child:
    while _children:
        child = _children.pop()
        if child._owner == os.getpid() and child._process.poll() is None:
            return child
    return _Child()


# The child's side


def serve() -> None:
    """Decodes what it is asked for on the standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is nobody's
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIPE)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    while True:
        size = struct.unpack("<I", _take_bytes(4))[0]
        if size:
            _send(out, _ANSWER, [json.dumps(_serve(out, json.loads(_take_bytes(size)))).encode()])


def _serve(out: int, request: dict[str, Any]) -> dict[str, Any]:
    path = request["path"]
    try:
        if "due" not in request:
            header = video_header(path)
            exact = {name: getattr(header, name) for name in _EXACT}
            told = {name: None if value is None else value.as_integer_ratio() for name, value in exact.items()}
            return {"height": header.height, "width": header.width, **told}
        frames = frames_at(path, request["due"], request["tolerance"], request["form"])
        batch: list[np.ndarray] = []
        for frame in islice(frames, request["skip"], None):
            if select.select([0], [], [], 0)[0]:
                return {}  # told that nobody wants the rest, or that nobody is there
            batch.append(frame)
            if len(batch) * frame.nbytes >= _BATCH or len(batch) == _MOST_FRAMES:
                _send_frames(out, batch)
        _send_frames(out, batch)
        return {}
    except Exception as error:  # whatever it is, it is said of the video, by the parent
        return {"error": f"the video cannot be decoded ({_said(error, path)})" if _is_av(error) else _said(error, path)}


def _send_frames(out: int, batch: list[np.ndarray]) -> None:
    """Sends the frames, which are of one shape, and empties the list."""
    if batch:
        frame = batch[0]
        channels = frame.shape[2] if frame.ndim == 3 else 0
        parts = [memoryview(np.ascontiguousarray(one)).cast("B") for one in batch]
        _send(out, _FRAMES, parts, len(batch), *frame.shape[:2], channels, frame.itemsize)
        batch.clear()


def _is_av(error: Exception) -> bool:
    return not isinstance(error, ValueError) or type(error).__module__.startswith("av")


def _said(error: Exception, path: str) -> str:
    text = (getattr(error, "strerror", None) if _is_av(error) else None) or one_line(error)
    return text.replace(path, "the video")


def _send(out: int, kind: bytes, parts: Sequence[memoryview | bytes], *shape: int) -> None:
    left = [_HEAD.pack(kind, sum(map(len, parts)), *shape or (0, 0, 0, 0, 0)), *parts]
    while left:
        sent = os.writev(out, left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left:
            left[0] = left[0][sent:]


def _take_bytes(count: int) -> bytes:
    data = b""
    while len(data) < count:
        some = os.read(0, count - len(data))
        if not some:
            os._exit(0)
        data += some
    return data


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, also while a decoder hangs."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(0)
