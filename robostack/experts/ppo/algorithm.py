"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) in JAX: one update is one compiled program.

An update steps all worlds, estimates advantages (arXiv 1506.02438), and follows the clipped surrogate

    L(θ) = E[min(r A, clip(r, 1 − ε, 1 + ε) A)],   r = π_θ(a|o) / π_old(a|o)

with the details that implementations agree on ("The 37 implementation details of PPO", Huang et al. 2022): orthogonal
weights, advantages normalised in each minibatch, Adam with ε = 1e-5, a learning rate that falls linearly, clipped
gradients; normalised observations where asked for. Left out are a clipped value loss and scaled rewards.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float

from robostack.envs.kinetix.simulation import State, repeated, select
from robostack.experts.ppo.config import PpoConfig
from robostack.experts.ppo.network import ActorCritic, RunningStatistics


@runtime_checkable
class World(Protocol):
    """What PPO learns in: a `Simulation`, or anything that steps and observes alike. It is hashed by identity or by
    what it does: one compiled program serves all that are equal."""

    def step(self, state: State, action: Array, key: Array) -> Any:
        """A `Transition`: state, reward, terminated, success, diverged."""
        ...

    def observe(self, state: State) -> dict[str, Array]:
        """One vector by its name."""
        ...


class Start(NamedTuple):
    """What tells the levels of one size apart, given to the compiled programs as arguments."""

    state: State
    used: Bool[Array, " action"]
    """Which numbers of an action do anything. The others are 0 and have no part in probabilities."""


class Learner(NamedTuple):
    """All that changes from update to update."""

    network: ActorCritic
    optimizer: Any
    statistics: RunningStatistics
    worlds: State  # of all worlds, each with a leading axis
    returns: Float[Array, " worlds"]  # rewards of the running episodes so far
    key: Array

    @staticmethod
    def initial(world: World, start: Start, config: PpoConfig, seed: int) -> Learner:
        """The same for the same seed."""
        key, network_key, age_key = jax.random.split(jax.random.PRNGKey(seed), 3)
        (observation,) = jax.tree.leaves(jax.eval_shape(world.observe, start.state))
        network = ActorCritic.initial(
            network_key, observation.shape[0], len(start.used), config.widths, config.deviation
        )
        # First episodes of any length: else all worlds would start, and be cut off, at once forever.
        worlds = repeated(start.state, config.worlds)
        ages = jax.random.randint(age_key, (config.worlds,), 0, config.max_episode_steps)
        return Learner(
            network,
            _optimizer(config).init(network),  # pyright: ignore[reportArgumentType] (a tree like any other)
            RunningStatistics.initial(observation.shape[0]),
            worlds.replace(timestep=ages.astype(worlds.timestep.dtype)),
            jnp.zeros(config.worlds),
            key,
        )


class Steps(NamedTuple):
    """Of all worlds between two updates, each (steps, worlds, …)."""

    observation: Array
    action: Array
    log_density: Array
    value: Array
    next_value: Array  # of what was seen after the step, before a reset
    reward: Array
    terminated: Array
    over: Array  # terminated or cut off
    success: Array
    length: Array  # steps of the episode so far
    total: Array  # its rewards so far


class Metrics(NamedTuple):
    """Of one update, each a number. Means over the episodes that ended in it are nan where none did."""

    episodes: Any
    solved: Any
    mean_return: Any
    length: Any
    entropy: Any
    surrogate: Any
    value_loss: Any
    kl: Any  # of the old policy from the new one, mean over the gradient steps
    clipped: Any  # share of ratios outside 1 ± ε


@cache
def update_program(world: World, config: PpoConfig) -> Any:
    """The jitted update(start, learner, learning_rate) → (learner, metrics)."""

    def update(start: Start, learner: Learner, learning_rate: Array) -> tuple[Learner, Metrics]:
        key, rollout_key, learn_key = jax.random.split(learner.key, 3)
        worlds, returns, steps = _rollout(world, config, start, learner, rollout_key)
        advantages = advantage(
            steps.reward, steps.value, steps.next_value, steps.terminated, steps.over, config.discount, config.trace
        )
        network, optimizer, losses = _learn(config, start, learner, steps, advantages, learning_rate, learn_key)
        # Of use from the next update on: within one, old and new policy must see the same.
        statistics = learner.statistics.updated(steps.observation) if config.normalise else learner.statistics
        ended = steps.over.sum()
        metrics = Metrics(
            ended,
            jnp.where(steps.over, steps.success, 0).sum() / ended,
            jnp.where(steps.over, steps.total, 0.0).sum() / ended,
            jnp.where(steps.over, steps.length, 0).sum() / ended,
            network.entropy(start.used),
            *losses,
        )
        return Learner(network, optimizer, statistics, worlds, returns, key), metrics

    return jax.jit(update)


def advantage(
    reward: Float[Array, "steps worlds"],
    value: Float[Array, "steps worlds"],
    next_value: Float[Array, "steps worlds"],
    terminated: Bool[Array, "steps worlds"],
    over: Bool[Array, "steps worlds"],
    discount: float,
    trace: float,
) -> Float[Array, "steps worlds"]:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16).

    δ_t = r_t + γ V(o_{t+1}) − V(o_t),  A_t = δ_t + γ λ A_{t+1}

    V(o_{t+1}) is 0 after an ending. Where an episode is cut off it stays: the world would have gone on. A_{t+1} is 0
    after either, since the next step belongs to another episode.
    """
    delta = reward + discount * next_value * ~terminated - value

    def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, over = step
        now = delta + discount * trace * later * ~over
        return now, now

    return jax.lax.scan(back, jnp.zeros_like(reward[0]), (delta, over), reverse=True)[1]


def surrogate_loss(
    log_ratio: Float[Array, " batch"], advantages: Float[Array, " batch"], clip: float
) -> Float[Array, ""]:
    """−E[min(r A, clip(r, 1 − ε, 1 + ε) A)] (arXiv 1707.06347, equation 7)."""
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages).mean()


def observation_of(world: World, state: State) -> Array:
    """The vector that the world shows."""
    (observation,) = world.observe(state).values()
    return observation


def step_worlds(world: World, worlds: State, actions: Array, key: Array) -> Any:
    """A `Transition` of all worlds, whose noise is drawn from `key`; where one diverged its reward is 0."""
    after = jax.vmap(world.step)(worlds, actions, jax.random.split(key, len(actions)))
    return after._replace(reward=jnp.where(after.diverged, 0.0, after.reward))


def _rollout(world: World, config: PpoConfig, start: Start, learner: Learner, key: Array) -> tuple[State, Array, Steps]:
    network, statistics = learner.network, learner.statistics
    first = observation_of(world, start.state)

    def step(carry: tuple[State, Array, Array], key: Array) -> tuple[Any, Steps]:
        worlds, observation, returns = carry
        action_key, noise_key = jax.random.split(key)
        seen = statistics.normalised(observation)
        mean = network.mean(seen)
        action = mean + jnp.exp(network.log_deviation) * jax.random.normal(action_key, mean.shape)
        action = jnp.where(start.used, action, 0.0)
        after = step_worlds(world, worlds, action, noise_key)
        final = jax.vmap(lambda state: observation_of(world, state))(after.state)
        over = after.terminated | (after.state.timestep >= config.max_episode_steps)
        returns = returns + after.reward
        done = Steps(
            observation,
            action,
            network.log_density(mean, action, start.used),
            network.value(seen),
            network.value(statistics.normalised(final)),
            after.reward,
            after.terminated,
            over,
            after.success,
            after.state.timestep,
            returns,
        )
        worlds = select(over, start.state, after.state)
        return (worlds, select(over, first, final), jnp.where(over, 0.0, returns)), done

    observation = jax.vmap(lambda state: observation_of(world, state))(learner.worlds)
    carry = (learner.worlds, observation, learner.returns)
    (worlds, _, returns), steps = jax.lax.scan(step, carry, jax.random.split(key, config.steps))
    return worlds, returns, steps


def _learn(
    config: PpoConfig,
    start: Start,
    learner: Learner,
    steps: Steps,
    advantages: Array,
    learning_rate: Array,
    key: Array,
) -> tuple[ActorCritic, Any, tuple[Array, ...]]:
    optimizer = _optimizer(config)
    data = (
        learner.statistics.normalised(steps.observation),
        steps.action,
        steps.log_density,
        advantages,
        advantages + steps.value,  # the return that the critic is to predict
    )
    data = jax.tree.map(lambda leaf: leaf.reshape(config.batch, *leaf.shape[2:]), data)

    def loss(network: ActorCritic, batch: Any) -> tuple[Array, tuple[Array, ...]]:
        observation, action, old_log_density, advantages, returns = batch
        log_ratio = network.log_density(network.mean(observation), action, start.used) - old_log_density
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        surrogate = surrogate_loss(log_ratio, advantages, config.clip)
        value_loss = 0.5 * ((network.value(observation) - returns) ** 2).mean()
        kl = (jnp.expm1(log_ratio) - log_ratio).mean()  # never negative, unlike −E[log r]
        clipped = (jnp.abs(jnp.expm1(log_ratio)) > config.clip).mean()
        total = surrogate + config.value * value_loss - config.entropy * network.entropy(start.used)
        return total, (surrogate, value_loss, kl, clipped)

    def descend(carry: tuple[ActorCritic, Any], rows: Array) -> tuple[Any, tuple[Array, ...]]:
        network, state = carry
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        gradient, told = jax.grad(loss, has_aux=True)(network, batch)
        direction, state = optimizer.update(gradient, state)
        return (jax.tree.map(lambda p, d: p - learning_rate * d, network, direction), state), told

    orders = jax.vmap(lambda key: jax.random.permutation(key, config.batch))(jax.random.split(key, config.epochs))
    rows = orders.reshape(config.epochs * config.minibatches, -1)
    (network, state), told = jax.lax.scan(descend, (learner.network, learner.optimizer), rows)
    return network, state, jax.tree.map(jnp.mean, told)


def _optimizer(config: PpoConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), optax.scale_by_adam(eps=1e-5))
