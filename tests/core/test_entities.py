"""A world is a set: neither order nor empty places change what its token says."""

import torch

from robostack.core.entities import EntityEncoder


def world(seed: int = 0) -> torch.Tensor:
    entities = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed)).exp() * 30.0
    entities[..., 0] = 1.0
    entities[:, 4] = 0.0
    return entities


def test_order_and_empty_places_say_nothing() -> None:
    torch.manual_seed(0)
    encoder = EntityEncoder(7, 16, inner_width=16, depth=2, heads=2)
    entities = world()
    token = encoder(entities)
    assert token.shape == (2, 1, 16)
    torch.testing.assert_close(encoder(entities[:, [3, 4, 1, 0, 2]]), token)
    torch.testing.assert_close(encoder(torch.cat([entities, torch.zeros(2, 3, 7)], dim=1)), token)
    torch.testing.assert_close(encoder(entities[:, :4]), token)


def test_every_entity_counts_and_relates_to_the_others() -> None:
    torch.manual_seed(0)
    encoder, entities = EntityEncoder(7, 16, inner_width=16, depth=2, heads=2), world()
    for place in range(4):
        moved = entities.clone()
        moved[:, place, 3] *= 2.0
        assert (encoder(moved) - encoder(entities)).abs().max() > 1e-4
    # Were entities encoded apart, two worlds' tokens would change by the same when one entity changes.
    other = entities.clone()
    other[:, 1, 2] *= 3.0
    changed, both = entities.clone(), other.clone()
    changed[:, 0, 3] *= 2.0
    both[:, 0, 3] *= 2.0
    assert not torch.allclose(encoder(changed) - encoder(entities), encoder(both) - encoder(other), atol=1e-4)


def test_an_empty_world_has_a_token_without_a_nan() -> None:
    encoder = EntityEncoder(7, 16, inner_width=16, depth=1, heads=2)
    empty = torch.zeros(3, 5, 7, requires_grad=True)
    encoder(empty).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder(empty).isfinite().all()
