"""Every policy sees through encoders of many tokens, with one for each camera or one for all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from observations import interface, make_observation, seeded
from small_policies import DT, SMALL

from robostack.common.serialize import from_json, to_json
from robostack.core.vision.backbone import DINOV2_L, SIGLIP_SO400M
from robostack.datasets.moments import History
from robostack.policies.decision_transformer import DecisionTransformer
from robostack.policies.encoder import EncoderConfig, ObservationEncoder, encode_images, make_image_encoders
from robostack.policies.protocol import Observation
from robostack.policies.registry import policy_class
from robostack.policies.weights import load_strictly, without_weights

CAMERAS = {"top": (24, 24), "wrist": (16, 32)}
SIZE: dict[str, Any] = dict(width=16, depth=1, heads=2, hidden=24, patch=8, size=(16, 16))
SIGLIP = EncoderConfig(vision="siglip", siglip=replace(SIGLIP_SO400M, **SIZE), shared=True)
DINOV2 = EncoderConfig(vision="dinov2", dinov2=replace(DINOV2_L, **SIZE))
CASES = [name for name in SMALL if name.endswith("camera") or name == "diffusion, dit"]


def observe(config: Any, batch: int = 2) -> Observation:
    observation = make_observation(batch, CAMERAS, config.history)
    entities = torch.rand(batch, config.history.length, 3, 4)
    present = {**observation.present, "wrist": torch.arange(batch) > 0}
    return replace(observation, entities=entities, present=present)


@pytest.mark.parametrize("encoder", [SIGLIP, DINOV2], ids=["siglip", "dinov2"])
@pytest.mark.parametrize("case", CASES)
def test_every_policy_trains_and_acts(case: str, encoder: EncoderConfig, tmp_path: Path) -> None:
    config = replace(SMALL[case][0], encoder=encoder)
    assert from_json(type(config), to_json(config)) == config

    def make() -> Any:
        return policy_class(case.split(",")[0])(config, replace(interface(CAMERAS), entities=(3, 4)))

    torch.manual_seed(0)
    policy, observation = make(), observe(config)
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)  # what starts at zero would hide what passes through it
    actions = torch.randn(2, config.chunk_len, 3)
    policy.loss(observation, actions, torch.ones_like(actions, dtype=torch.bool), seeded()).backward()
    seeing = {name: p.grad for name, p in policy.named_parameters() if ".backbone." in name}
    assert seeing and all(gradient is not None and gradient.any() for gradient in seeing.values())
    chunk = policy.eval().sample(observation, seeded())
    assert chunk.shape == actions.shape and bool(chunk.isfinite().all())
    for name in CAMERAS:
        dark = {**observation.images, name: observation.images[name] // 2}
        changed = policy.sample(replace(observation, images=dark), seeded()) != chunk
        assert changed.flatten(1).any(1).tolist() == [name == "top", True]  # the first row has no wrist
    loaded: Any = without_weights(make)
    load_strictly(loaded.eval(), policy.state_dict(), tmp_path, assign=True)
    assert torch.equal(loaded.sample(observation, seeded()), chunk)


def test_tokens_of_a_step_lie_side_by_side() -> None:
    torch.manual_seed(0)
    encoder = ObservationEncoder(SIGLIP, replace(interface(CAMERAS), entities=(3, 4)), 2, 12)
    observation = replace(make_observation(2, CAMERAS, History(2)), entities=torch.rand(2, 2, 3, 4))
    before, valid = encoder(observation)
    assert encoder.views == [4, 4, 1] and encoder.tokens == before.shape[1] == valid.shape[1] == 3 + 2 * 9
    wrist = observation.images["wrist"].clone()
    wrist[:, 1, :, :16] ^= 255  # the left half of the second look
    after, _ = encoder(replace(observation, images={**observation.images, "wrist": wrist}))
    changed = (before != after).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == [15, 16, 17, 18]  # states, task, twice four of the top camera, four of the first look
    hidden = replace(observation, present={**observation.present, "wrist": torch.tensor([False, True])})
    tokens, valid = encoder(hidden)
    assert (~valid).nonzero().tolist() == [[0, place] for place in range(11, 19)] and not tokens[~valid].any()
    _, valid = encoder(replace(observation, valid=torch.tensor([[True, True], [False, True]])))
    assert (~valid).nonzero().tolist() == [[1, place] for place in (0, 3, 4, 5, 6, 11, 12, 13, 14, 19)]


def test_no_decision_sees_a_later_picture() -> None:
    config = replace(DT, encoder=SIGLIP)
    torch.manual_seed(0)
    policy = DecisionTransformer(config, interface(CAMERAS))
    observation = make_observation(2, CAMERAS, config.history)
    before, wrist = policy.predict(observation), observation.images["wrist"].clone()
    wrist[:, 1] ^= 255
    after = policy.predict(replace(observation, images={**observation.images, "wrist": wrist}))
    assert (after != before).flatten(2).any(-1).tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize("vision", ["siglip", "keypoints", "vit"])
@pytest.mark.parametrize("cameras", [{"top": (16, 16), "type": (16, 16)}, {"top": (16, 16)}, CAMERAS])
def test_cameras_that_share_an_encoder_are_seen_as_by_one_each(vision: Any, cameras: dict[str, Any]) -> None:
    shared = replace(SIGLIP, vision=vision)
    if vision != "siglip" and cameras is CAMERAS:
        with pytest.raises(ValueError, match=r"alike, got top 24x24x3, wrist 16x32x3: leave shared out"):
            make_image_encoders(shared, interface(cameras), 12)
        return
    one = make_image_encoders(shared, interface(cameras), 12).double()
    each = make_image_encoders(replace(shared, shared=False), interface(cameras), 12).double()
    assert len(one) == 1 and len(each) == len(cameras)
    (weights,) = (module.state_dict() for module in one.values())
    for module in each.values():
        module.load_state_dict(weights)
    images = [frames[:, 0] for frames in make_observation(3, cameras).images.values()]
    torch.testing.assert_close(encode_images(one, images), encode_images(each, images))


def test_no_camera_that_shares_an_encoder_is_smaller_than_the_crop() -> None:
    with pytest.raises(ValueError, match="16x32 pixels has no middle of 20x20"):
        make_image_encoders(replace(SIGLIP, crop=(20, 20)), interface(CAMERAS), 12)
