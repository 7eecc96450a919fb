"""The transformer's promises: the prefix cache changes nothing, streams meet only where the mask lets them, what is not
wanted is not missed, and a single stream is the encoder or decoder that others know."""

import dataclasses

import pytest
import torch

from robostack.core.attention import block_mask
from robostack.core.optim import hidden_matrices
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


def layers_state(prefix: str, layer: torch.nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Tensors of one of torch's layers under our names."""
    theirs = layer.state_dict()
    return {
        f"{prefix}.{ours}{end}": theirs[name + ("_" if name.endswith("in_proj") else ".") + end.strip(".")]
        for ours, name in names.items()
        for end in (".weight", ".bias")
    }


@pytest.mark.parametrize("order", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_one_stream_is_torchs_encoder(order: str, activation: str) -> None:
    torch.manual_seed(0)
    gelu = torch.nn.GELU(approximate="tanh")
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, gelu if activation == "gelu" else "relu", batch_first=True, norm_first=order == "pre_norm"
    )
    config = TransformerConfig((StreamConfig(16, 24, 0, "layer", activation, True),), 1, 4, 4, 4, order=order)
    ours = Transformer(config)
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
    expected = theirs(x, src_key_padding_mask=~valid)
    if order == "pre_norm":
        expected = torch.nn.functional.layer_norm(expected, (16,))
    blocks = torch.zeros(5, dtype=torch.int64)
    outputs, _ = ours([x], block_mask(blocks, blocks, valid), None, [None])
    torch.testing.assert_close(outputs[0][valid], expected[valid])


def decoder(order: str = "post_norm", depth: int = 1, memory: int = 16) -> Transformer:
    stream = StreamConfig(16, 24, norm="layer", feed_forward="relu", bias=True)
    torch.manual_seed(0)
    return Transformer(TransformerConfig((stream,), depth, 4, 4, 4, order=order, memory=memory))


@pytest.mark.parametrize("order", ["pre_norm", "post_norm"])
def test_a_stream_with_a_memory_is_torchs_decoder(order: str) -> None:
    ours = decoder(order)
    theirs = torch.nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=order == "pre_norm")
    names = {
        "attention_norms.0": "norm1",
        "projections.0.query_key_value": "self_attn.in_proj",
        "projections.0.output": "self_attn.out_proj",
        "cross_norms.0": "norm2",
        "cross_projections.0.output": "multihead_attn.out_proj",
        "feed_forward_norms.0": "norm3",
        "feed_forwards.0.up": "linear1",
        "feed_forwards.0.down": "linear2",
    }
    last = {name: value for name, value in ours.state_dict().items() if name.startswith("norms.")}
    state = {**layers_state("layers.0", theirs, names), **last}
    for kind in ("weight", "bias"):
        query, key, value = getattr(theirs.multihead_attn, f"in_proj_{kind}").detach().normal_().chunk(3)
        state[f"layers.0.cross_projections.0.query.{kind}"] = query
        state[f"layers.0.memory.key_value.{kind}"] = torch.cat([key, value])
    ours.load_state_dict(state)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    valid = torch.tensor([[True, True, True], [True, False, True]])
    expected = theirs(x, memory, memory_key_padding_mask=~valid)
    if order == "pre_norm":
        expected = torch.nn.functional.layer_norm(expected, (16,))
    outputs, _ = ours([x], None, None, [None], memory=ours.remember(memory), memory_mask=valid[:, None])
    torch.testing.assert_close(outputs[0], expected)


def test_embeddings_reach_queries_and_keys_but_not_values() -> None:
    model = decoder().double()
    x, memory, embedding, where = (torch.randn(1, n, 16, dtype=torch.float64) for n in (1, 3, 1, 3))
    plain, _ = model([x], None, None, [None], memory=model.remember(memory))
    # One token looks at itself whatever its query and key are.
    moved, _ = model([x], None, None, [None], embeddings=[embedding], memory=model.remember(memory[:, :1]))
    expected, _ = model([x], None, None, [None], memory=model.remember(memory[:, :1]))
    torch.testing.assert_close(moved[0], expected[0])
    # Among several keys it matters where query and keys stand, and a shift of all keys alike changes no softmax.
    moved, _ = model([x], None, None, [None], embeddings=[embedding], memory=model.remember(memory))
    assert not torch.allclose(moved[0], plain[0])
    moved, _ = model([x], None, None, [None], memory=model.remember(memory, where))
    assert not torch.allclose(moved[0], plain[0])
    moved, _ = model([x], None, None, [None], memory=model.remember(memory, where[:, :1].expand(-1, 3, -1)))
    torch.testing.assert_close(moved[0], plain[0])


def test_streams_of_batch_one_look_at_a_batch_of_memories() -> None:
    model = decoder(depth=2).double()
    x, memory, embedding = (torch.randn(b, n, 16, dtype=torch.float64) for b, n in ((1, 5), (3, 4), (1, 5)))
    memories = model.remember(memory)
    one, _ = model([x], None, None, [None], embeddings=[embedding], memory=memories)
    all_, _ = model([x.expand(3, -1, -1)], None, None, [None], embeddings=[embedding], memory=memories)
    torch.testing.assert_close(one[0], all_[0])


@pytest.mark.parametrize("wanted", [(slice(0, 1), slice(1, 3)), (slice(4, None), None), (slice(0, 0), slice(0, 2))])
@pytest.mark.parametrize("conditions", [1, 3])
def test_wanted_tokens_are_those_of_the_full_output(wanted: tuple[slice, slice | None], conditions: int) -> None:
    model, (prefix, suffix, _) = two_streams(), inputs()
    condition = torch.randn(2, conditions, 6, dtype=torch.float64)
    blocks = torch.tensor([0] * 5 + [1, 2, 2])
    arguments = ([prefix, suffix], block_mask(blocks, blocks), torch.arange(8)[None], [None, condition])
    full, cache = model(*arguments)
    part, part_cache = model(*arguments, wanted=wanted)
    for x, expected, tokens in zip(part, full, wanted, strict=True):
        torch.testing.assert_close(x, expected if tokens is None else expected[:, tokens])
    torch.testing.assert_close(part_cache, cache)


@pytest.mark.parametrize("order", ["pre_norm", "post_norm"])
def test_wanted_tokens_look_at_the_memory_from_where_they_stand(order: str) -> None:
    model = decoder(order, depth=2).double()
    x, memory, embedding = (torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 3, 5))
    arguments = {"embeddings": [embedding], "memory": model.remember(memory)}
    full, _ = model([x], None, None, [None], **arguments)
    part, _ = model([x], None, None, [None], wanted=[slice(1, 4)], **arguments)
    torch.testing.assert_close(part[0], full[0][:, 1:4])


def test_blocks_before_attention_from_only_look_at_the_memory() -> None:
    model = decoder(depth=2).double()
    later = Transformer(dataclasses.replace(model.config, attention_from=1)).double()
    state = model.state_dict()
    later.load_state_dict({name: state[name] for name in later.state_dict()})
    gone = set(state) - set(later.state_dict())
    assert gone and all(name.startswith(("layers.0.attention_norms", "layers.0.projections")) for name in gone)
    x, memory = torch.randn(2, 5, 16).double(), model.remember(torch.randn(2, 3, 16).double())
    full, _ = later([x], None, None, [None], memory=memory)
    # Where the first block's attention adds nothing, norming once more what is normed is all that is left of it.
    with torch.no_grad():
        for kind in ("weight", "bias"):
            model.get_parameter(f"layers.0.projections.0.output.{kind}").zero_()
    normed = torch.nn.functional.layer_norm(x, (16,))
    expected, _ = model([x], None, None, [None], memory=memory)
    torch.testing.assert_close(later([normed], None, None, [None], memory=memory)[0][0], expected[0])
    part, _ = later([x], None, None, [None], memory=memory, wanted=[slice(2, 4)])
    torch.testing.assert_close(part[0], full[0][:, 2:4])
    # The last block may be one of them.
    only = Transformer(dataclasses.replace(model.config, attention_from=2)).double()
    full, _ = only([x], None, None, [None], memory=memory)
    part, _ = only([x], None, None, [None], memory=memory, wanted=[slice(2, 4)])
    torch.testing.assert_close(part[0], full[0][:, 2:4])


def test_refactors_keep_the_numbers() -> None:
    """Sums of outputs, keys and values of a fixed model, as the first version of the transformer gave them."""
    model, (prefix, suffix, condition) = two_streams(), inputs()
    blocks = torch.tensor([0] * 5 + [1, 2, 2])
    outputs, cache = model([prefix, suffix], block_mask(blocks, blocks), torch.arange(8)[None], [None, condition])
    sums = [x.detach().abs().sum().item() for x in (*outputs, *cache[-1])]
    assert sums == pytest.approx(
        [88.82291928702034, 56.72772761280643, 170.85279335915845, 130.53858306726283], rel=1e-12
    )


def test_every_linear_layer_of_a_block_is_hidden_and_no_other() -> None:
    names = {name.removeprefix("layers.0.").removesuffix(".weight") for name in hidden_matrices(decoder())}
    assert names == {
        "projections.0.query_key_value",
        "projections.0.output",
        "cross_projections.0.query",
        "cross_projections.0.output",
        "memory.key_value",
        "feed_forwards.0.up",
        "feed_forwards.0.down",
    }
    assert not any("norm" in name for name in hidden_matrices(two_streams()))


def test_configs_and_calls_that_contradict_themselves_are_refused() -> None:
    config = two_streams().config
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        dataclasses.replace(config, kv_heads=3)
    with pytest.raises(ValueError, match="pre_norm"):
        dataclasses.replace(config, order="post_norm")
    with pytest.raises(ValueError, match="expected a memory"):
        dataclasses.replace(config, attention_from=1)
    with pytest.raises(ValueError, match="memory"):
        decoder()([torch.randn(1, 2, 16)], None, None, [None])
