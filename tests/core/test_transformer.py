"""The transformer's promises: the prefix cache changes nothing, streams meet only where the mask lets them, and a
single stream is the decoder that others know."""

import pytest
import torch

from robostack.core.attention import block_mask
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig


def two_streams(condition: int = 6) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        streams=(StreamConfig(12, 24), StreamConfig(8, 16, condition=condition)),
        depth=3,
        heads=4,
        kv_heads=2,
        head_dim=4,
    )
    model = Transformer(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)  # also what starts at zero, or its part would go untested
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((2, 5, 12), (2, 3, 8), (2, 1, 6)))  # type: ignore[return-value]


def test_prefix_cache_gives_the_joint_forward() -> None:
    model, (prefix, suffix, condition) = two_streams(), inputs()
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    blocks = torch.tensor([0] * 5 + [1, 2, 2])
    everything = torch.cat([valid, torch.ones(2, 3, dtype=torch.bool)], dim=1)
    joint, _ = model([prefix, suffix], block_mask(blocks, blocks, everything), torch.arange(8)[None], [None, condition])
    _, cache = model([prefix, None], block_mask(blocks[:5], blocks[:5], valid), torch.arange(5)[None], [None, None])
    cached, _ = model(
        [None, suffix], block_mask(blocks[5:], blocks, everything), torch.arange(5, 8)[None], [None, condition], cache
    )
    torch.testing.assert_close(cached[1], joint[1])


def test_a_stream_does_not_change_what_may_not_see_it() -> None:
    model, (prefix, suffix, condition) = two_streams(), inputs()
    blocks = torch.tensor([0] * 5 + [1] * 3)
    arguments = (block_mask(blocks, blocks), torch.arange(8)[None], [None, condition])
    before, _ = model([prefix, suffix], *arguments)
    after, _ = model([prefix, suffix + 1.0], *arguments)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_a_fresh_conditioned_stream_passes_through_unchanged() -> None:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig((StreamConfig(8, 16, condition=6),), depth=2, heads=2, kv_heads=1, head_dim=4)
    )
    x = torch.randn(2, 3, 8)
    outputs, _ = model([x], None, torch.arange(3)[None], [torch.randn(2, 1, 6)])
    torch.testing.assert_close(outputs[0], torch.nn.functional.rms_norm(x, (8,), eps=1e-6))


def test_one_stream_is_gemma() -> None:
    from transformers import GemmaConfig
    from transformers.models.gemma.modeling_gemma import GemmaModel

    torch.manual_seed(0)
    theirs = GemmaModel(
        GemmaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            hidden_activation="gelu_pytorch_tanh",
            attn_implementation="eager",
        )
    ).eval()
    ours = Transformer(TransformerConfig((StreamConfig(16, 24),), depth=2, heads=4, kv_heads=1, head_dim=8)).eval()
    state = {}
    for i, layer in enumerate(theirs.layers):
        attention, mlp = layer.self_attn, layer.mlp
        heads = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        state |= {
            f"layers.{i}.attention_norms.0.weight": layer.input_layernorm.weight,
            f"layers.{i}.projections.0.query_key_value.weight": torch.cat(heads),
            f"layers.{i}.projections.0.output.weight": attention.o_proj.weight,
            f"layers.{i}.feed_forward_norms.0.weight": layer.post_attention_layernorm.weight,
            f"layers.{i}.feed_forwards.0.gate_up.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            f"layers.{i}.feed_forwards.0.down.weight": mlp.down_proj.weight,
        }
    ours.load_state_dict({**state, "norms.0.weight": theirs.norm.weight})
    embedded = torch.randn(2, 6, 16)
    blocks = torch.arange(6)
    outputs, _ = ours([embedded], block_mask(blocks, blocks), blocks[None], [None])
    torch.testing.assert_close(outputs[0], theirs(inputs_embeds=embedded).last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [5, 16])
def test_norm_computes_in_float32_and_keeps_the_type(width: int) -> None:
    from robostack.kernels.rms_norm import rms_norm

    x, weight = torch.randn(3, width, dtype=torch.bfloat16) * 100, torch.randn(width)
    y = rms_norm(x, weight)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight.double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-6)
