"""π0 and OpenVLA in their published sizes: PaliGemma's prefix at reduced width, all of it on the meta device."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch
from observations import interface, make_observation
from transformers_weights import exact, language_block, siglip

from robostack.core.vision.backbone import SIGLIP_SO400M
from robostack.policies.pi0 import PI0, Pi0

__all__ = ["exact"]

CAMERAS = {"base": (12, 12), "left": (12, 12)}
TOKENS, WORDS, IMAGE = 9, 4, 9
"""Of a picture, of a text, and the word that stands for a token of a picture."""


def test_pi0s_prefix_is_paligemmas(exact: None) -> None:
    """Keys and values of every layer, with padding: a camera that one robot does not have, and texts of two lengths."""
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaModel, SiglipVisionConfig

    torch.manual_seed(0)
    layers: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=3)
    vision = SiglipVisionConfig(
        **layers, intermediate_size=24, num_attention_heads=2, image_size=12, patch_size=4, vision_use_head=False
    )
    text = GemmaConfig(
        **layers, vocab_size=10, intermediate_size=32, num_attention_heads=4, num_key_value_heads=1, head_dim=8
    )
    theirs = PaliGemmaModel(
        PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, projection_dim=16)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    theirs = theirs.double().eval()

    backbone = replace(SIGLIP_SO400M, width=16, depth=3, heads=2, hidden=24, size=(12, 12), patch=4)
    config = replace(
        PI0,
        prefix_width=16,
        prefix_hidden=32,
        depth=3,
        heads=4,
        head_dim=8,
        expert_width=8,
        expert_hidden=8,
        encoder=replace(PI0.encoder, siglip=backbone),
    )
    ours = Pi0(config, replace(interface(CAMERAS), vocabulary=10)).double().eval()
    state = ours.state_dict()
    tower, projector = theirs.vision_tower, theirs.multi_modal_projector.linear
    new = {f"cameras.shared.backbone.{k}": v for k, v in siglip(getattr(tower, "vision_model", tower)).items()}
    new |= {"cameras.shared.token.weight": projector.weight, "cameras.shared.token.bias": projector.bias}
    new["word.weight"] = theirs.language_model.embed_tokens.weight
    for i, layer in enumerate(theirs.language_model.layers):
        new |= {k: v for k, v in language_block(layer, f"transformer.layers.{i}", 0).items() if k in state}
    last = "transformer.layers.2.projections.0.query_key_value.weight"
    new[last] = new[last][-2 * 8 :]  # the queries of the last block are read by nothing
    assert new.keys() <= state.keys()
    ours.load_state_dict({**state, **new})

    observation = make_observation(2, CAMERAS)
    observation = replace(
        observation,
        state=observation.state.double(),
        present={**observation.present, "left": torch.tensor([False, True])},
    )
    context = ours.encode(observation)

    images = torch.stack([observation.images[name][:, 0] for name in CAMERAS], dim=1).flatten(0, 1)
    ids = torch.cat([torch.full((2, 2 * TOKENS), IMAGE), observation.text.ids], dim=1)
    present = torch.stack([observation.present[name] for name in CAMERAS], dim=1).repeat_interleave(TOKENS, dim=1)
    valid = torch.cat([present, observation.text.valid], dim=1)
    expected = theirs(
        input_ids=ids,
        pixel_values=(images.double() / 127.5 - 1.0).permute(0, 3, 1, 2),
        attention_mask=valid.long(),
        position_ids=(valid.cumsum(1) - 1).clamp(min=0),
        token_type_ids=torch.zeros_like(ids),
        use_cache=True,
    ).past_key_values
    count = 2 * TOKENS + WORDS
    for i in range(3):
        for found, known in ((context.cache.keys, "keys"), (context.cache.values, "values")):
            whole = found[i][:, :, :count].transpose(1, 2)[valid]
            there = getattr(expected.layers[i], known).transpose(1, 2)[valid]
            torch.testing.assert_close(whole, there, rtol=1e-9, atol=1e-9)


BUILT = """
import json
from pathlib import Path
from dataclasses import replace
import torch
from robostack.core.language import LLAMA2_7B, LanguageModel
from robostack.policies.pi0 import PI0, PI05, Pi0
from robostack.policies.protocol import Interface

cameras = dict.fromkeys(("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"), (224, 224))
interface = Interface(state_dim=32, action_dim=32, words=48, vocabulary=257_152, cameras=cameras)
with torch.device("meta"):
    told = replace(interface, words=200, told_state=True)
    made = [Pi0(PI0, interface), Pi0(PI05, told), LanguageModel(replace(LLAMA2_7B, vocabulary=32_064))]
# Not getrusage's, which a new process takes over from the one that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
kilobytes = int(status["VmHWM"].split()[0])
print(json.dumps([kilobytes * 1024, *(sum(p.numel() for p in model.parameters()) for model in made)]))
"""


def test_full_sizes_are_built_on_the_meta_device_in_a_gigabyte_and_have_their_numbers_of_parameters() -> None:
    """Of the state dicts that openpi's and OpenVLA's reference implementations have, by shape."""
    ran = subprocess.run([sys.executable, "-c", BUILT], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    memory, pi0, pi05, llama = json.loads(ran.stdout)
    assert memory < 1e9

    tower, projector, words = 412_442_352, 2048 * 1153, 257_152 * 2048
    feed_forward, half = 3 * 16_384 * 2048, 2048 * 2048
    prefix = 18 * (2 * half + 2 * 256 * 2048 + feed_forward + 2 * 2048) + 2048
    unread = 2 * half + feed_forward + 2 * 2048  # of the last block queries, output, feed-forward and norm; final norm
    expert = 18 * (2 * 2048 * 1024 + 2 * 256 * 1024 + 3 * 4096 * 1024)
    norms, head = 37 * 1024, 257_152 * 1024
    ends = 2 * 1024 * 33 + 32 * 1025 + 1024 * 2049 + 1024 * 1025  # state and actions in, actions out, time
    published = tower + projector + words + prefix + expert + norms + head + ends
    assert pi0 == published - unread - head  # what is left out is read by nothing
    adaptive, ends = 37 * 3 * 1024 * 1025, 1024 * 33 + 32 * 1025 + 2 * 1024 * 1025
    assert pi05 == tower + projector + words + prefix - unread + expert + adaptive + ends
    openvla = 730_911_680 + (8704 * 2177 + 4096 * 8705 + 4096 * 4097) + llama
    assert llama == 6_738_939_904 and openvla == 7_541_237_184
