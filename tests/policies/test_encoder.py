"""What a policy sees: tokens in a told order, of which those of what is not there neither count nor change others."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from observations import Cameras, as_text, interface, make_observation, seeded
from small_policies import SMALL

from robostack.common.serialize import from_json, to_json
from robostack.datasets.episodes import Feature
from robostack.datasets.moments import History
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.encoder import EncoderConfig, ObservationEncoder, make_image_encoder, module_key
from robostack.policies.protocol import Observation
from robostack.policies.settings import Augmentation
from robostack.training.augmentation import augment
from robostack.training.config import TrainConfig
from robostack.training.trainer import train

CAMERAS: Cameras = {"top": (24, 24), "wrist": (16, 32)}
VIT = EncoderConfig(vision="vit", patch_width=16, patch_heads=2)
LOOKS, WIDTH = 2, 12


def make_encoder(config: EncoderConfig = VIT, looks: int = LOOKS, cameras: Cameras = CAMERAS) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(config, interface(cameras), looks, WIDTH)


def observe(batch: int = 4, looks: int = LOOKS, cameras: Cameras = CAMERAS) -> Observation:
    text = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]).repeat(batch // 2, 1)
    return dataclasses.replace(make_observation(batch, cameras, History(looks)), text=as_text(text))


def test_state_alone_at_one_look_is_two_tokens() -> None:
    encoder = make_encoder(looks=1, cameras={})
    tokens, valid = encoder(observe(looks=1, cameras={}))
    assert tokens.shape == (4, 2, WIDTH) and encoder.tokens == 2 and valid.all()


@pytest.mark.parametrize("vision", ["keypoints", "vit"])
def test_each_token_tells_of_its_part_of_the_observation_and_of_no_other(vision: str) -> None:
    encoder = make_encoder(dataclasses.replace(VIT, vision=vision))
    observation = observe()
    before, valid = encoder(observation)
    assert before.shape == (4, encoder.tokens, WIDTH) and valid.shape == before.shape[:2]

    def touched(**change) -> list[int]:
        after, _ = encoder(dataclasses.replace(observation, **change))
        return (after != before).any(-1).any(0).nonzero().flatten().tolist()

    state = observation.state.clone()
    state[:, 0] += 1.0
    wrist = observation.images["wrist"].clone()
    wrist[:, 1] = 255 - wrist[:, 1]
    # States of both looks, the task, two looks of `top`, two of `wrist`.
    assert encoder.tokens == 7
    assert touched(state=state) == [0]
    assert touched(text=as_text(observation.text.ids.roll(1, dims=0))) == [2]
    assert touched(images={**observation.images, "wrist": wrist}) == [6]


def test_a_task_without_words_does_not_count() -> None:
    observation = dataclasses.replace(observe(), text=as_text(torch.zeros(4, 4, dtype=torch.long)))
    tokens, valid = make_encoder()(observation)
    assert not tokens[:, 2].any() and not valid[:, 2].any() and valid[:, :2].all()


def test_a_camera_that_the_robot_has_not_is_zero_does_not_count_and_has_no_gradient() -> None:
    encoder, observation = make_encoder(), observe()
    present = {**observation.present, "top": torch.zeros(4, dtype=torch.bool)}
    absent = dataclasses.replace(observation, present=present)
    frames = {**observation.images, "top": 255 - observation.images["top"]}
    (tokens, valid), (other, _) = encoder(absent), encoder(dataclasses.replace(absent, images=frames))
    assert torch.equal(tokens, other) and not tokens[:, 3:5].any()
    assert valid.tolist() == [[True, True, True, False, False, True, True]] * 4
    tokens.square().sum().backward()
    moved = {
        n.split(".")[1] for n, p in encoder.cameras.named_parameters(prefix="of") if p.grad is not None and p.grad.any()
    }
    assert moved == {"wrist"}


def test_looks_before_the_episode_do_not_count_and_show_what_is_repeated_there() -> None:
    encoder, observation = make_encoder(), observe()
    seen = torch.tensor([[False, True]] * 2 + [[True, True]] * 2)
    tokens, valid = encoder(dataclasses.replace(observation, valid=seen))
    assert valid[:2].tolist() == [[False, True, True, False, True, False, True]] * 2 and valid[2:].all()
    assert torch.equal(tokens, encoder(observation)[0])


def test_looks_are_told_apart() -> None:
    observation = observe()
    alike = dataclasses.replace(observation, state=observation.state[:, :1].expand(-1, LOOKS, -1))
    tokens, _ = make_encoder()(alike)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1], atol=1e-3)


@pytest.mark.parametrize("vision", ["keypoints", "vit"])
def test_rows_of_a_batch_do_not_touch_each_other(vision: str) -> None:
    encoder, observation = make_encoder(dataclasses.replace(VIT, vision=vision)).double(), observe()
    observation = dataclasses.replace(observation, state=observation.state.double())
    together, _ = encoder(observation)
    changed = dataclasses.replace(
        observation,
        state=torch.cat([observation.state[:1], observation.state[1:] + 1.0]),
        images={name: torch.cat([frames[:1], 255 - frames[1:]]) for name, frames in observation.images.items()},
    )
    torch.testing.assert_close(encoder(changed)[0][0], together[0])


def test_cameras_larger_than_the_crop_are_seen_in_their_middle() -> None:
    encoder, observation = make_encoder(dataclasses.replace(VIT, crop=(16, 16))), observe()
    rim = {name: 255 - frames for name, frames in observation.images.items()}
    rim["top"][:, :, 4:20, 4:20] = observation.images["top"][:, :, 4:20, 4:20]
    rim["wrist"][:, :, :, 8:24] = observation.images["wrist"][:, :, :, 8:24]
    assert torch.equal(encoder(dataclasses.replace(observation, images=rim))[0], encoder(observation)[0])


def test_a_shift_moves_real_pixels_into_the_crop() -> None:
    """Augmentation comes before the crop: the edge that a shift repeats is never in sight where the margin is wider."""
    observation = observe(cameras={"top": (24, 24)})
    red = observation.images["top"]
    red[:] = torch.tensor([9, 0, 0], dtype=torch.uint8)
    red[:, :, :2] = red[:, :, -2:] = red[:, :, :, :2] = red[:, :, :, -2:] = 200  # what a repeated edge would be made of
    shifted = augment(observation, Augmentation(shift=2), seeded()).images["top"]
    assert (shifted != red).any() and (shifted[:, :, 4:20, 4:20] == red[:, :, 4:20, 4:20]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (12,)}, "multiples of 8"),
        ({"channels": ()}, "multiples of 8"),
        ({"patch_width": 36}, "multiple of 8"),
        ({"keypoints": 0}, "keypoints must be at least 1"),
        ({"crop": (0, 16)}, "at least 1x1"),
    ],
)
def test_settings_that_make_no_encoder_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VIT, **change)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="16x32 pixels has no middle of 24x24"):
        make_encoder(EncoderConfig(crop=(24, 24)))
    with pytest.raises(ValueError, match="patches of 8 pixels"):
        make_image_encoder(VIT, (30, 32), WIDTH)


NAMES = ("rgb.left_wrist", "left/wrist", "left wrist", "type", "keys", "training", "forward", "_modules", "a.b")
NAMES += ("a%2Eb", "", "%", "top", "[red]", "Kamera ü", "register_buffer", "%74ype", "a\nb")


def test_a_camera_may_have_any_name() -> None:
    assert len({module_key(name) for name in NAMES}) == len(NAMES)
    assert all(module_key(name) == name for name in ("top", "left wrist", "left/wrist", "rgb_left-wrist", "[red]"))
    cameras = dict.fromkeys(NAMES, (16, 16))
    encoder, observation = make_encoder(cameras=cameras), observe(cameras=cameras)
    assert encoder(observation)[0].shape[1] == LOOKS + 1 + LOOKS * len(NAMES)


@pytest.mark.parametrize("case", ["pi0", "act", "diffusion, unet, camera", "decision_transformer", "energy"])
def test_a_policy_with_cameras_of_any_name_trains_and_is_saved_and_loaded(tmp_path: Path, case: str) -> None:
    keys = ("observation.state", "observation.type", "observation.a.b/c d", "action")
    features = {key: Feature((2,), "float32") for key in keys} | {"next.reward": Feature((), "float32")}
    features |= {f"observation.images.{name}": Feature((24, 24, 3), "uint8") for name in NAMES[:4]}
    rng = np.random.default_rng(0)
    episode = {key: rng.integers(0, 9, (30, *f.shape)).astype(f.dtype) for key, f in features.items()}
    writer = EpisodeWriter(tmp_path / "data", features, 10, robot="type")
    writer.append(episode, "[red]\x1b")
    writer.finish()
    observe = tuple(key for key in features if key.startswith("observation."))
    config = TrainConfig(
        (tmp_path / "data",), tmp_path / "run", observe=observe, steps=2, batch=4, checkpoint_every=2, log_every=1
    )
    policy, (settings, _) = case.split(",")[0], SMALL[case]
    saved = Checkpoint.read(train(policy, settings, config))
    assert tuple(saved.processor.cameras) == NAMES[:4]
    keys = saved.processor.keys_of("type")
    sampler = WindowSampler(EpisodeStore(tmp_path / "data"), keys, settings.chunk_len, history=settings.history)
    seen = saved.processor.observe(sampler.draw(3, np.random.default_rng(0)), ["[red]\x1b"] * 3, "type")
    assert torch.isfinite(saved.load().sample(seen, seeded())).all()


def test_settings_are_read_back_as_they_were_written() -> None:
    for config in (VIT, EncoderConfig(crop=(16, 24), channels=(8, 16))):
        assert from_json(EncoderConfig, to_json(config)) == config
