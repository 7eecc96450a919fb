"""A Gaussian actor and a critic on normalised observations, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

_FLOOR = 1e-6  # of a variance: 1/1000 of a feature's unit is what hardly varying features are scaled by
_LIMIT = 10.0  # deviations beyond which an observation is cut off


class Affine(NamedTuple):
    """y = x · weight + bias."""

    weight: Float[Array, "into out"]
    bias: Float[Array, " out"]


class ActorCritic(NamedTuple):
    """Two perceptrons with tanh that share no layer, and the deviation of the actions.

    Actions are drawn from N(mean(observation), exp(log_deviation)²), one number per dimension. The Gaussian knows no
    bounds: the environment clips what it is given, and the policy's probability is that of the action before that.
    """

    actor: tuple[Affine, ...]
    critic: tuple[Affine, ...]
    log_deviation: Float[Array, " action"]

    @staticmethod
    def initial(key: Array, observation: int, action: int, widths: Sequence[int], deviation: float) -> ActorCritic:
        """Orthogonal weights: gain √2 in hidden layers, 0.01 for the first means to be about 0, 1 for the value."""
        actor_key, critic_key = jax.random.split(key)
        return ActorCritic(
            _perceptron(actor_key, (observation, *widths, action), 0.01),
            _perceptron(critic_key, (observation, *widths, 1), 1.0),
            jnp.full(action, jnp.log(deviation), jnp.float32),
        )

    def mean(self, observations: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The action most likely, of normalised observations."""
        return _apply(self.actor, observations)

    def value(self, observations: Float[Array, "*batch observation"]) -> Float[Array, "*batch"]:
        """The discounted return from normalised observations on."""
        return _apply(self.critic, observations)[..., 0]

    def log_density(
        self,
        mean: Float[Array, "*batch action"],
        action: Float[Array, "*batch action"],
        used: Bool[Array, " action"],
    ) -> Float[Array, "*batch"]:
        """log π(action) over the dimensions that are used."""
        z = (action - mean) / jnp.exp(self.log_deviation)
        each = -0.5 * z**2 - self.log_deviation - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.where(used, each, 0.0).sum(-1)

    def entropy(self, used: Bool[Array, " action"]) -> Float[Array, ""]:
        """In nats, over the dimensions that are used."""
        return jnp.where(used, self.log_deviation + 0.5 * jnp.log(2 * jnp.pi * jnp.e), 0.0).sum()


class RunningStatistics(NamedTuple):
    """Mean and variance of every feature over all observations so far."""

    count: Float[Array, ""]
    mean: Float[Array, " observation"]
    variance: Float[Array, " observation"]

    @staticmethod
    def initial(observation: int) -> RunningStatistics:
        """Of nothing yet: observations pass unchanged."""
        return RunningStatistics(jnp.zeros(()), jnp.zeros(observation), jnp.ones(observation))

    def updated(self, observations: Float[Array, "*batch observation"]) -> RunningStatistics:
        """With more observations (Chan, Golub and LeVeque 1979)."""
        batch = observations.reshape(-1, observations.shape[-1])
        mean, variance, more = batch.mean(0), batch.var(0), jnp.float32(len(batch))
        total = self.count + more
        apart = mean - self.mean
        squares = self.variance * self.count + variance * more + apart**2 * self.count * more / total
        return RunningStatistics(total, self.mean + apart * more / total, squares / total)

    def normalised(self, observations: Float[Array, "*batch observation"]) -> Float[Array, "*batch observation"]:
        """(o − mean) / deviation, cut off at ±10."""
        scaled = (observations - self.mean) / jnp.sqrt(jnp.maximum(self.variance, _FLOOR))
        return jnp.clip(scaled, -_LIMIT, _LIMIT)


def _perceptron(key: Array, widths: Sequence[int], last_gain: float) -> tuple[Affine, ...]:
    layers = []
    for i, (into, out) in enumerate(pairwise(widths)):
        gain = last_gain if i == len(widths) - 2 else 2**0.5
        weight = jax.nn.initializers.orthogonal(gain)(jax.random.fold_in(key, i), (into, out), jnp.float32)
        layers.append(Affine(weight, jnp.zeros(out)))
    return tuple(layers)


def _apply(layers: Sequence[Affine], x: Array) -> Array:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer.weight + layer.bias)
    return x @ layers[-1].weight + layers[-1].bias
