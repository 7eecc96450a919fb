"""Backbones are the published ones: SigLIP and DINOv2 with registers at reduced width."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers_weights

from robostack.core.vision.backbone import DINOV2_L, SIGLIP_SO400M, Backbone, BackboneConfig

SIZES: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=12, patch_size=4)
CONFIGS = {"siglip": SIGLIP_SO400M, "dinov2": DINOV2_L}


def small(config: BackboneConfig, hidden: int) -> BackboneConfig:
    return replace(config, width=16, depth=3, heads=2, hidden=hidden, size=(12, 12), patch=4)


def both(name: str) -> tuple[Backbone, Any]:
    """Ours and transformers', with the same random weights, in float64."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    if name == "siglip":
        theirs: Any = SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=24, vision_use_head=False))
        ours = Backbone(small(SIGLIP_SO400M, hidden=24))
    else:
        theirs = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES))
        ours = Backbone(small(DINOV2_L, hidden=64))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    theirs, ours = theirs.double().eval(), ours.double().eval()
    ours.load_state_dict(weights(name, theirs))
    return ours, theirs


def weights(name: str, theirs: Any) -> dict[str, torch.Tensor]:
    if name == "siglip":
        return transformers_weights.siglip(getattr(theirs, "vision_model", theirs))
    return transformers_weights.dinov2(theirs)


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 12, 12, 3), dtype=torch.uint8)


def pixels(images: torch.Tensor, config: BackboneConfig) -> torch.Tensor:
    """As transformers' image processors give them."""
    mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in (config.mean, config.deviation))
    return ((images.double() / 255.0 - mean) / deviation).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_transformers(name: str) -> None:
    ours, theirs = both(name)
    images = pictures()
    expected = theirs(pixels(images, CONFIGS[name])).last_hidden_state[:, CONFIGS[name].registers :]
    found = ours(images)
    assert found.shape == (3, ours.tokens, 16) == (3, 9, 16)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_block_before_the_last_is_read_without_a_norm(name: str) -> None:
    """As OpenVLA does (arXiv 2406.09246)."""
    whole, theirs = both(name)
    ours = Backbone(replace(whole.config, depth=2, final_norm=False)).double()
    gone = ("transformer.layers.2.", "transformer.norms.")
    ours.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith(gone)})
    images = pictures()
    states = theirs(pixels(images, CONFIGS[name]), output_hidden_states=True).hidden_states
    expected = states[-2][:, CONFIGS[name].registers :]
    torch.testing.assert_close(ours(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_bfloat16_it_is_as_near_as_bfloat16_is(name: str) -> None:
    ours, theirs = both(name)
    images = pictures()
    exact = theirs(pixels(images, CONFIGS[name])).last_hidden_state[:, CONFIGS[name].registers :]
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    its = theirs(pixels(images, CONFIGS[name]).bfloat16()).last_hidden_state[:, CONFIGS[name].registers :]
    error, its_error = ((x.double() - exact).abs().mean() for x in (ours(images), its))
    assert error < 1.5 * its_error


def test_published_sizes_have_their_numbers_of_parameters() -> None:
    """Those of OpenVLA's two are 730,911,680 with SigLIP's attention pool, which is left out here."""
    with torch.device("meta"):
        dinov2, siglip = (sum(p.numel() for p in Backbone(config).parameters()) for config in (DINOV2_L, SIGLIP_SO400M))
    assert siglip == 412_442_352
    pool = 1152 + 4 * 1152 * 1153 + 2 * 1152 + 4304 * 1153 + 1152 * 4305
    assert dinov2 + siglip + pool == 730_911_680


def test_settings_that_make_no_backbone_are_refused() -> None:
    for change, message in (
        ({"heads": 5}, "multiple of heads = 5"),
        ({"size": (224, 220)}, "multiples of patch = 14"),
        ({"deviation": (0.5, 0.0, 0.5)}, "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SIGLIP_SO400M, **change)


def test_pictures_of_any_size_and_depth_are_brought_to_its_own() -> None:
    torch.manual_seed(0)
    backbone = Backbone(small(DINOV2_L, hidden=16))
    assert backbone(torch.zeros(2, 30, 44, 3, dtype=torch.uint8)).shape == (2, 9, 16)
    depth = torch.rand(2, 12, 12, 1)
    grey = (255 * depth).round()
    torch.testing.assert_close(backbone(grey / 255), backbone(grey.to(torch.uint8).expand(-1, -1, -1, 3)))
