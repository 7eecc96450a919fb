"""Attention against written-out sums, rotary positions against their defining property."""

import math

import pytest
import torch

from robostack.core.attention import ROTARY, Mask, Rotary, Yarn, attend, rotate


def test_attention_is_the_softmax_average_of_the_values_it_may_see() -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64) for _ in range(3))
    mask = Mask(torch.arange(5), torch.arange(5))
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


def dense(mask: Mask, queries: int, keys: int) -> torch.Tensor:
    made = mask.made_dense(queries, keys, torch.device("cpu"), always=True).dense
    assert made is not None
    return made


def test_blocks_see_themselves_and_earlier_blocks_but_no_padding() -> None:
    blocks = torch.tensor([0, 0, 1, 2, 2])
    valid = torch.tensor([[True, False, True, True, True]])
    expected = torch.tensor(
        [[[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 1], [1, 0, 1, 1, 1]]], dtype=torch.bool
    )
    assert torch.equal(dense(Mask(blocks, blocks, valid), 5, 5), expected)


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8, generator=g), torch.randn(1, 1, 1, 8, generator=g)

    def score(at_query: int, at_key: int) -> float:
        rotated_query = rotate(query, *ROTARY.angles(torch.tensor([[at_query]]), 8))
        rotated_key = rotate(key, *ROTARY.angles(torch.tensor([[at_key]]), 8))
        return float((rotated_query * rotated_key).sum())

    assert abs(score(3, 1) - score(12, 10)) < 1e-5
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_rotation_agrees_with_transformers() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=g)
    cos, sin = ROTARY.angles(torch.arange(5)[None], 8)
    full = [torch.cat([part, part], dim=-1)[:, 0] for part in (cos, sin)]
    theirs, _ = apply_rotary_pos_emb(x, x, *full)
    torch.testing.assert_close(rotate(x, cos, sin), theirs)


@pytest.mark.parametrize(("window", "sinks", "offset"), [(0, 0, 0), (3, 0, 0), (2, 2, 0), (3, 1, 4), (0, 0, 2)])
def test_causal_masks_see_their_window_and_the_sinks(window: int, sinks: int, offset: int) -> None:
    queries, keys = 5, 9
    mask = Mask(causal=True, window=window, sinks=sinks, offset=torch.tensor(offset))
    expected = [
        [k <= offset + q and (not window or offset + q - k < window or k < sinks) for k in range(keys)]
        for q in range(queries)
    ]
    assert dense(mask, queries, keys)[0].tolist() == expected


def test_a_query_that_may_see_nothing_is_a_number_all_the_same() -> None:
    x = torch.randn(2, 1, 3, 4)
    valid = torch.tensor([[False] * 3, [True, False, False]])
    assert attend(x, x, x, Mask(valid=valid)).isfinite().all()
    assert dense(Mask(valid=valid), 3, 3)[1].tolist() == [[True, False, False]]


def test_a_plainly_causal_mask_is_never_made() -> None:
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert Mask(causal=True).made_dense(4, 4, x.device).dense is None
    blocks = torch.arange(4)
    torch.testing.assert_close(attend(x, x, x, Mask(causal=True)), attend(x, x, x, Mask(blocks, blocks)))


@pytest.mark.parametrize("wrong", [{"query_blocks": torch.arange(2)}, {"window": 3}, {"causal": True, "sinks": 1}])
def test_masks_that_contradict_themselves_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"got those of one alone|needs? a"):
        Mask(**wrong)


def test_yarn_stretches_slow_turns_and_leaves_fast_ones() -> None:
    scaling, head_dim, trained = Yarn(factor=4.0, trained_length=64), 16, 64
    positions = torch.tensor([[0, 1, 100]])
    cos, sin = Rotary(100.0, scaling).angles(positions, head_dim)
    for i in range(head_dim // 2):
        theta = 100.0 ** (-2 * i / head_dim)
        turns = trained * theta / (2 * math.pi)
        gamma = min(1.0, max(0.0, (turns - 1.0) / (32.0 - 1.0)))
        theta = (1 - gamma) * theta / 4.0 + gamma * theta
        for j, position in enumerate((0, 1, 100)):
            grown = 0.1 * math.log(4.0) + 1.0
            assert cos[0, 0, j, i].item() == pytest.approx(grown * math.cos(position * theta), abs=2e-5)
            assert sin[0, 0, j, i].item() == pytest.approx(grown * math.sin(position * theta), abs=2e-5)
    # What turns less than once over the trained length is interpolated as a whole.
    slowest = Rotary(100.0, scaling).angles(torch.tensor([[40]]), head_dim)[1][0, 0, 0, -1]
    assert slowest / scaling.temperature == pytest.approx(
        ROTARY_100.angles(torch.tensor([[10]]), head_dim)[1][0, 0, 0, -1]
    )


ROTARY_100 = Rotary(100.0)
