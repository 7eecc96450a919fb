"""Attention against written-out sums, rotary positions against their defining property."""

import torch

from robostack.core.attention import attend, block_mask, rotary_angles, rotate


def test_attention_is_the_softmax_average_of_the_values_it_may_see() -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64) for _ in range(3))
    mask = block_mask(torch.arange(5), torch.arange(5))
    expected = torch.zeros_like(query)
    for batch in range(2):
        for head in range(3):
            for i in range(5):
                scores = torch.stack([query[batch, head, i] @ key[batch, head, j] / 2.0 for j in range(i + 1)])
                expected[batch, head, i] = scores.softmax(0) @ value[batch, head, : i + 1]
    torch.testing.assert_close(attend(query, key, value, mask), expected)


def test_grouped_heads_share_their_keys_and_values() -> None:
    g = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 5, 4, generator=g)
    key, value = (torch.randn(2, 2, 7, 4, generator=g) for _ in range(2))
    repeated = attend(query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), None)
    torch.testing.assert_close(attend(query, key, value, None), repeated)


def test_blocks_see_themselves_and_earlier_blocks_but_no_padding() -> None:
    blocks = torch.tensor([0, 0, 1, 2, 2])
    valid = torch.tensor([[True, False, True, True, True]])
    expected = torch.tensor(
        [[[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 1], [1, 0, 1, 1, 1]]], dtype=torch.bool
    )
    assert torch.equal(block_mask(blocks, blocks, valid), expected)


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8, generator=g), torch.randn(1, 1, 1, 8, generator=g)

    def score(at_query: int, at_key: int) -> float:
        rotated_query = rotate(query, *rotary_angles(torch.tensor([[at_query]]), 8))
        rotated_key = rotate(key, *rotary_angles(torch.tensor([[at_key]]), 8))
        return float((rotated_query * rotated_key).sum())

    assert abs(score(3, 1) - score(12, 10)) < 1e-5
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_rotation_agrees_with_transformers() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=g)
    cos, sin = rotary_angles(torch.arange(5)[None], 8)
    full = [torch.cat([part, part], dim=-1)[:, 0] for part in (cos, sin)]
    theirs, _ = apply_rotary_pos_emb(x, x, *full)
    torch.testing.assert_close(rotate(x, cos, sin), theirs)
