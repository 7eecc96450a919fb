"""Named cameras of the ALOHA scene. Free of MuJoCo, so that a command line can parse them cheaply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

IMAGES = "observation.images."


@dataclass(frozen=True)
class Camera:
    """A view of the scene, `height` × `width` pixels."""

    name: str
    """What appears in the observation key `observation.images.<name>`."""
    mount: str
    """The camera of the MuJoCo model that gives position and direction."""
    height: int = 96
    width: int = 96
    fovy: float | None = None
    """Vertical field of view in degrees; None keeps the model's."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"camera {self.name!r}: expected a size of at least 1x1 pixels, got {self.height}x{self.width}"
            )
        if self.fovy is not None and not 0 < self.fovy < 180:
            raise ValueError(f"camera {self.name!r}: expected 0 < fovy < 180 degrees, got {self.fovy}")


CAMERAS: Mapping[str, Camera] = MappingProxyType(
    {
        camera.name: camera
        for camera in (
            Camera("top", mount="top"),  # 78 degrees, as gym_aloha renders it: 15 mm per pixel at 84 pixels
            Camera("top_zoom", mount="top", fovy=42.0),
            Camera("left_wrist", mount="left_wrist"),
            Camera("right_wrist", mount="right_wrist"),
            Camera("angle", mount="angle"),
            Camera("front_close", mount="front_close"),
        )
    }
)
"""The presets. All are gym_aloha's own cameras except `top_zoom`, which is not part of the original benchmark:
the top camera narrowed from 78 to 42 degrees, so that the table's work area fills the picture."""

_CAMERA_TEXT = re.compile(r"(?P<name>[a-z_]+)(?::(?P<height>\d+)x(?P<width>\d+))?")


def parse_camera(text: str) -> Camera:
    """The camera that `NAME` or `NAME:HEIGHTxWIDTH` describes, e.g. `top_zoom:64x64`. Raises ValueError where the text
    has another form or no preset has this name."""
    match = _CAMERA_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"camera {text!r}: expected NAME or NAME:HEIGHTxWIDTH, such as top_zoom:64x64")
    if match["name"] not in CAMERAS:
        raise ValueError(f"unknown camera {match['name']!r}: known are {', '.join(CAMERAS)}")
    camera = CAMERAS[match["name"]]
    if match["height"] is None:
        return camera
    return replace(camera, height=int(match["height"]), width=int(match["width"]))


def image_key(camera: Camera) -> str:
    """The observation key of its frames."""
    return IMAGES + camera.name
