"""The transformer's promises: the prefix cache changes nothing, streams meet only where the mask lets them, what is not
wanted is not missed, and a single stream is the encoder or decoder that others know."""

import dataclasses

import pytest
import torch

from robostack.core.attention import Mask
from robostack.core.optim import hidden_matrices
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.core.transformer_parts import Norm


def two_streams(condition: int = 6, outputs: bool = True) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        streams=(StreamConfig(12, 24, outputs=outputs), StreamConfig(8, 16, condition=condition)),
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


@torch.no_grad()
@pytest.mark.parametrize("outputs", [True, False])
def test_prefix_cache_gives_the_joint_forward(outputs: bool) -> None:
    model, (prefix, suffix, condition) = two_streams(outputs=outputs), inputs()
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    blocks = torch.tensor([0] * 5 + [1, 2, 2])
    everything = torch.cat([valid, torch.ones(2, 3, dtype=torch.bool)], dim=1)
    positions = torch.arange(8)[None]
    joint = model([prefix, suffix], Mask(blocks, blocks, everything), positions, [None, condition])
    cache = model.empty_cache(prefix, batch=2, capacity=8)
    written = torch.cat([valid, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    alone = model([prefix, None], Mask(valid=written), positions[:, :5], None, cache)
    cache.keep(5)
    for _ in range(2):  # what a step wrote is written over by the next
        cached = model([None, suffix], Mask(blocks[5:], blocks, everything), positions[:, 5:], [None, condition], cache)
        torch.testing.assert_close(cached[1], joint[1])
        model([None, suffix + 1.0], Mask(blocks[5:], blocks, everything), positions[:, 5:], [None, condition], cache)
    if outputs:
        torch.testing.assert_close(alone[0][valid], joint[0][valid])
    else:
        assert alone == [None, None] and joint[0] is None and cached[0] is None


def test_a_stream_without_outputs_changes_nothing_for_the_others() -> None:
    full, part = two_streams(), two_streams(outputs=False)
    state, own = full.state_dict(), part.state_dict()
    part.load_state_dict({name: state[name][-len(own[name]) :] for name in own})  # keys and values are the last rows
    prefix, suffix, condition = inputs()
    blocks = torch.tensor([0] * 5 + [1, 2, 2])
    for mask in (Mask(blocks, blocks), Mask(valid=torch.arange(8).expand(2, 8) != 3), Mask(causal=True), None):
        expected, found = (m([prefix, suffix], mask, torch.arange(8)[None], [None, condition]) for m in (full, part))
        torch.testing.assert_close(found[1], expected[1])
    assert all(p.grad is not None for p in _with_gradients(part, found[1]))


def _with_gradients(model: Transformer, output: torch.Tensor) -> list[torch.nn.Parameter]:
    output.square().sum().backward()
    return list(model.parameters())


def test_a_stream_does_not_change_what_may_not_see_it() -> None:
    model, (prefix, suffix, condition) = two_streams(), inputs()
    blocks = torch.tensor([0] * 5 + [1] * 3)
    arguments = (Mask(blocks, blocks), torch.arange(8)[None], [None, condition])
    before = model([prefix, suffix], *arguments)
    after = model([prefix, suffix + 1.0], *arguments)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_a_fresh_conditioned_stream_passes_through_unchanged() -> None:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig((StreamConfig(8, 16, condition=6),), depth=2, heads=2, kv_heads=1, head_dim=4)
    )
    x = torch.randn(2, 3, 8)
    (outputs,) = model([x], None, torch.arange(3)[None], [torch.randn(2, 1, 6)])
    torch.testing.assert_close(outputs, torch.nn.functional.rms_norm(x, (8,), eps=1e-6))


def layers_state(prefix: str, layer: torch.nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Tensors of one of torch's layers under our names."""
    theirs = layer.state_dict()
    return {
        f"{prefix}.{ours}{end}": theirs[name + ("_" if name.endswith("in_proj") else ".") + end.strip(".")]
        for ours, name in names.items()
        for end in (".weight", ".bias")
    }


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
def test_one_stream_is_torchs_encoder(activation: str) -> None:
    torch.manual_seed(0)
    gelu = torch.nn.GELU(approximate="tanh" if activation == "gelu_tanh" else "none")
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, "relu" if activation == "relu" else gelu, batch_first=True, norm_first=True
    )
    stream = StreamConfig(16, 24, norm=Norm("layer", eps=1e-5), feed_forward=activation, bias=True)
    ours = Transformer(TransformerConfig((stream,), 1, 4, 4, 4))
    names = {
        "attention_norms.0": "norm1",
        "projections.0.query_key_value": "self_attn.in_proj",
        "projections.0.output": "self_attn.out_proj",
        "feed_forward_norms.0": "norm2",
        "feed_forwards.0.up": "linear1",
        "feed_forwards.0.down": "linear2",
    }
    last = {name: value for name, value in ours.state_dict().items() if name.startswith("norms.")}
    ours.load_state_dict({**layers_state("layers.0", theirs, names), **last})
    x, valid = torch.randn(3, 5, 16), torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    expected = torch.nn.functional.layer_norm(theirs(x, src_key_padding_mask=~valid), (16,))
    (outputs,) = ours([x], Mask(valid=valid), None)
    torch.testing.assert_close(outputs[valid], expected[valid])


def test_layer_scale_is_the_gate_of_both_branches() -> None:
    stream = StreamConfig(8, 16, layer_scale=1.0)
    torch.manual_seed(0)
    scaled = Transformer(TransformerConfig((stream,), 2, 2, 1, 4))
    plain = Transformer(dataclasses.replace(scaled.config, streams=(dataclasses.replace(stream, layer_scale=0.0),)))
    state = scaled.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(scaled([x], None, None)[0], plain([x], None, None)[0])
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if name.endswith("layer_scale"):
                parameter.zero_()
    torch.testing.assert_close(scaled([x], None, None)[0], torch.nn.functional.rms_norm(x, (8,), eps=1e-6))


def test_refactors_keep_the_numbers() -> None:
    """Sums of the outputs of a fixed model, as the first version of the transformer gave them, whose norms were of
    float32."""
    model, (prefix, suffix, condition) = two_streams(), inputs()
    blocks = torch.tensor([0] * 5 + [1, 2, 2])
    outputs = model([prefix, suffix], Mask(blocks, blocks), torch.arange(8)[None], [None, condition])
    sums = [x.detach().abs().sum().item() for x in outputs]
    assert sums == pytest.approx([88.82291928702034, 56.72772761280643], rel=1e-6)


def test_every_linear_layer_of_a_block_is_hidden_and_no_other() -> None:
    names = hidden_matrices(two_streams())
    assert {name.removeprefix("layers.0.") for name in names if name.startswith("layers.0.")} == {
        f"{part}.{stream}.{layer}.weight"
        for stream in (0, 1)
        for part, layers in (("projections", ("query_key_value", "output")), ("feed_forwards", ("gate_up", "down")))
        for layer in layers
    }
    assert not any("norm" in name for name in names)


def test_configs_that_contradict_themselves_are_refused() -> None:
    config = two_streams().config
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        dataclasses.replace(config, kv_heads=3)
    with pytest.raises(ValueError, match="no layer_scale beside"):
        dataclasses.replace(config, streams=(StreamConfig(8, 16, condition=6, layer_scale=1.0),))
