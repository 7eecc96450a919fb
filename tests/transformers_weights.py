"""What tests of parity with the transformers library share: its weights under our names, and its models in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor


def language_block(layer: Any, block: str, stream: int) -> dict[str, Tensor]:
    """Of a layer of Gemma or Llama."""
    attention, mlp = layer.self_attn, layer.mlp
    heads = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    return {
        f"{block}.attention_norms.{stream}.weight": layer.input_layernorm.weight,
        f"{block}.projections.{stream}.query_key_value.weight": torch.cat(heads),
        f"{block}.projections.{stream}.output.weight": attention.o_proj.weight,
        f"{block}.feed_forward_norms.{stream}.weight": layer.post_attention_layernorm.weight,
        f"{block}.feed_forwards.{stream}.gate_up.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        f"{block}.feed_forwards.{stream}.down.weight": mlp.down_proj.weight,
    }


def siglip(tower: Any) -> dict[str, Tensor]:
    """Of a SiglipVisionModel, as those of a `Backbone`."""
    places, patches = tower.embeddings.position_embedding.weight, tower.embeddings.patch_embedding
    state = _ends(patches, places, tower.post_layernorm)
    for i, layer in enumerate(tower.encoder.layers):
        attention = layer.self_attn
        heads = [attention.q_proj, attention.k_proj, attention.v_proj]
        norms, mlp = (layer.layer_norm1, layer.layer_norm2), (layer.mlp.fc1, layer.mlp.fc2)
        state |= _vision_block(f"transformer.layers.{i}", norms, heads, attention.out_proj, mlp)
    return state


def dinov2(model: Any) -> dict[str, Tensor]:
    """Of a Dinov2WithRegistersModel, as those of a `Backbone`."""
    embeddings, (first, *places) = model.embeddings, model.embeddings.position_embeddings[0]
    state = _ends(embeddings.patch_embeddings.projection, torch.stack(places), model.layernorm)
    state["registers"] = torch.cat([embeddings.cls_token[0] + first, embeddings.register_tokens[0]])
    for i, layer in enumerate(model.encoder.layer):
        block, attention = f"transformer.layers.{i}", layer.attention.attention
        heads = [attention.query, attention.key, attention.value]
        mlp = layer.mlp.fc1, layer.mlp.fc2
        state |= _vision_block(block, (layer.norm1, layer.norm2), heads, layer.attention.output.dense, mlp)
        state[f"{block}.attention_norms.0.layer_scale"] = layer.layer_scale1.lambda1
        state[f"{block}.feed_forward_norms.0.layer_scale"] = layer.layer_scale2.lambda1
    return state


def _ends(patches: Any, places: Tensor, norm: Any) -> dict[str, Tensor]:
    return {
        "patch_in.weight": patches.weight.permute(0, 2, 3, 1).flatten(1),
        "patch_in.bias": patches.bias,
        "places": places,
        "transformer.norms.0.weight": norm.weight,
        "transformer.norms.0.bias": norm.bias,
    }


def _vision_block(block: str, norms: Any, heads: Any, output: Any, mlp: Any) -> dict[str, Tensor]:
    state = {}
    for name in ("weight", "bias"):
        state |= {
            f"{block}.attention_norms.0.{name}": getattr(norms[0], name),
            f"{block}.feed_forward_norms.0.{name}": getattr(norms[1], name),
            f"{block}.projections.0.query_key_value.{name}": torch.cat([getattr(head, name) for head in heads]),
            f"{block}.projections.0.output.{name}": getattr(output, name),
            f"{block}.feed_forwards.0.up.{name}": getattr(mlp[0], name),
            f"{block}.feed_forwards.0.down.{name}": getattr(mlp[1], name),
        }
    return state


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers norms in float32 and turns by angles in float32: here everything is float64, and the angles are
    those of ours."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    to = torch.Tensor.to
    widened = lambda x, *args, **kwargs: to(x, *(torch.float64 if a is torch.float32 else a for a in args), **kwargs)  # noqa: E731
    from transformers.models.gemma import modeling_gemma
    from transformers.models.llama import modeling_llama

    for kind in (modeling_llama.LlamaRMSNorm, modeling_gemma.GemmaRMSNorm):
        forward = kind.forward

        def norm(self: Any, x: torch.Tensor, forward: Any = forward) -> torch.Tensor:
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "to", widened)
                return forward(self, x)

        monkeypatch.setattr(kind, "forward", norm)
    for kind in (modeling_llama.LlamaRotaryEmbedding, modeling_gemma.GemmaRotaryEmbedding):

        def angles(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
            from robostack.core.attention import ROTARY

            parts = ROTARY.angles(position_ids, 8)
            return tuple(torch.cat([part[:, 0]] * 2, dim=-1).to(x.dtype) for part in parts)

        monkeypatch.setattr(kind, "forward", angles)
