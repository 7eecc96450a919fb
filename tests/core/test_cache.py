"""A cache holds what was written where it was written, and gradients pass by it unharmed."""

import torch

from robostack.core.cache import Cache


def written(cache: Cache, tokens: int, value: float, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.full((2, 1, tokens, 4), value)
    return cache.write(layer, cache.places(tokens), x, -x)


@torch.no_grad()
def test_what_is_kept_stays_and_the_rest_is_written_over() -> None:
    cache = Cache.empty(1, 2, 1, 6, 4)
    written(cache, 3, 1.0)
    cache.keep(3)
    written(cache, 2, 2.0)
    keys, values = written(cache, 2, 3.0)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 3, 3, 0] and torch.equal(values, -keys)
    assert keys.data_ptr() == cache.keys[0].data_ptr()


def test_gradients_reach_what_is_kept_and_do_not_change_what_is_not() -> None:
    cache = Cache.empty(1, 2, 1, 5, 4)
    prefix = torch.ones(2, 1, 2, 4, requires_grad=True)
    cache.write(0, cache.places(2), prefix, prefix)
    cache.keep(2)
    for factor in (2.0, 3.0):
        suffix = torch.ones(2, 1, 3, 4, requires_grad=True)
        keys, _ = cache.write(0, cache.places(3), factor * suffix, suffix)
        prefix.grad = None
        keys.sum().backward(retain_graph=True)
        assert torch.equal(prefix.grad, torch.ones_like(prefix))
        assert torch.equal(suffix.grad, torch.full_like(suffix, factor))
    assert not cache.keys[0][:, :, 2:].any()


@torch.no_grad()
def test_rows_can_be_taken_more_than_once() -> None:
    cache = Cache.empty(1, 2, 1, 3, 4)
    cache.write(0, cache.places(1), torch.arange(2.0).view(2, 1, 1, 1).expand(-1, -1, -1, 4), torch.zeros(2, 1, 1, 4))
    cache.keep(1)
    taken = cache.rows(torch.tensor([1, 1, 0]))
    assert taken.keys[0][:, 0, 0, 0].tolist() == [1, 1, 0] and taken.length == 1
