"""What is cut out of a picture, and the order of its patches."""

import torch

from robostack.core.vision.images import centre_crop, patchify
from robostack.envs.aloha.cameras import Camera
from robostack.envs.aloha.env import AlohaEnv


def test_the_middle_of_an_odd_margin_leaves_the_larger_part_below_and_right() -> None:
    rows = torch.arange(7, dtype=torch.uint8)[:, None].expand(7, 6)
    image = torch.stack([rows, torch.arange(6, dtype=torch.uint8).expand(7, 6), rows], dim=-1)[None]
    middle = centre_crop(image, (4, 3))[0]
    assert middle[:, 0, 0].tolist() == [1, 2, 3, 4] and middle[0, :, 1].tolist() == [1, 2, 3]
    assert centre_crop(image, None) is image


def test_patches_lie_row_by_row_and_hold_their_pixels() -> None:
    image = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    for index, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        assert torch.equal(patches[:, index], image[:, row : row + 2, column : column + 2].flatten(1))


def test_the_middle_of_the_stock_camera_is_the_narrowed_one() -> None:
    """n of N pixels of a view φ show 2 atan(n/N · tan(φ/2)): 64 of 136 make 41.7 degrees of the top camera's 78."""
    env = AlohaEnv(cameras=[Camera("wide", "top", 136, 136), Camera("narrow", "top", 64, 64, fovy=41.725)])
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        wide, narrow = (
            torch.from_numpy(observation[f"observation.images.{name}"])[None] for name in ("wide", "narrow")
        )
        middle = centre_crop(wide, (64, 64))
        beside = wide[:, 35:99, 36:100]  # one pixel off
        assert difference(middle, narrow) < 0.2 < 0.5 < difference(beside, narrow)
    env.close()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean, in levels of 255."""
    return float((one.float() - other.float()).abs().mean())
