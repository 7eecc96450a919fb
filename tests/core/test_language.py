"""Language models are the published ones: Gemma and Llama at reduced width, through the cache and token by token."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers_weights import exact, language_block

from robostack.core.attention import Mask
from robostack.core.language import GEMMA_2B, GEMMA_300M, LLAMA2_7B, LanguageConfig, LanguageModel
from robostack.core.transformer import TransformerConfig

__all__ = ["exact"]

SIZES: dict[str, Any] = dict(
    vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, head_dim=8
)


def small(config: LanguageConfig, kv_heads: int) -> LanguageConfig:
    """The same kind of model, small."""
    stream = dataclasses.replace(config.stream, width=16, hidden=24)
    transformer = TransformerConfig((stream,), depth=3, heads=4, kv_heads=kv_heads, head_dim=8)
    scale = 4.0 if config.scale != 1.0 else 1.0
    return dataclasses.replace(config, vocabulary=13, transformer=transformer, scale=scale)


def both(name: str) -> tuple[LanguageModel, Any]:
    """Ours and transformers', with the same random weights, in float64."""
    from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if name == "gemma":
        theirs = GemmaForCausalLM(
            GemmaConfig(**SIZES, num_key_value_heads=1, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
        )
        ours = LanguageModel(small(GEMMA_2B, kv_heads=1))
    else:
        theirs = LlamaForCausalLM(
            LlamaConfig(**SIZES, num_key_value_heads=4, rms_norm_eps=1e-5, tie_word_embeddings=False)
        )
        ours = LanguageModel(small(LLAMA2_7B, kv_heads=4))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    theirs, ours = theirs.double().eval(), ours.double().eval()
    state = {"words.weight": theirs.model.embed_tokens.weight, "transformer.norms.0.weight": theirs.model.norm.weight}
    if name == "llama":
        state["head.weight"] = theirs.lm_head.weight
    for i, layer in enumerate(theirs.model.layers):
        state |= language_block(layer, f"transformer.layers.{i}", 0)
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("name", ["gemma", "llama"])
def test_with_padding_it_is_transformers(name: str, exact: None) -> None:
    ours, theirs = both(name)
    ids = torch.randint(13, (3, 7))
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1, :3] = valid[2, :1] = False  # as a tokenizer pads for generation: on the left
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    expected = theirs(input_ids=ids, attention_mask=valid.long(), position_ids=positions).logits
    found = ours(ours.embed(ids), Mask(valid=valid, causal=True), positions)
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gemma", "llama"])
@torch.no_grad()
def test_token_by_token_it_is_the_whole_text_at_once(name: str, exact: None) -> None:
    ours, theirs = both(name)
    ids = torch.randint(13, (2, 9))
    expected = theirs(input_ids=ids).logits
    places = torch.arange(9)[None]
    torch.testing.assert_close(ours(ours.embed(ids), Mask(causal=True), places), expected, rtol=1e-9, atol=1e-9)
    cache = ours.transformer.empty_cache(ours.embed(ids), batch=2, capacity=12)
    found = []
    for start, end in [(0, 4), *((i, i + 1) for i in range(4, 9))]:  # a prompt, then one at a time
        mask = Mask(causal=True, offset=cache.length)
        found.append(ours(ours.embed(ids[:, start:end]), mask, places[:, start:end], cache))
        cache.keep(end - start)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-9, atol=1e-9)


def test_in_bfloat16_it_is_as_near_as_bfloat16_is() -> None:
    ours, theirs = both("llama")
    ids = torch.randint(13, (2, 9))
    exact = ours(ours.embed(ids), Mask(causal=True), torch.arange(9)[None])
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    found = ours(ours.embed(ids), Mask(causal=True), torch.arange(9)[None])
    error, its_error = ((x.double() - exact).abs().mean() for x in (found, theirs(input_ids=ids).logits))
    assert error < 1.5 * its_error


def test_published_sizes_have_their_numbers_of_parameters() -> None:
    """As Gemma's and Llama's reports count them."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in LanguageModel(c).parameters()) for c in (GEMMA_2B, GEMMA_300M, LLAMA2_7B)]
    gemma_2b, expert, llama = counts
    assert gemma_2b == 2_508_531_712  # Gemma 2B's 2,506,172,416, and 1,152 more words
    assert expert - 257_152 * 1024 == 311_464_960
    assert llama == 6_738_415_616
