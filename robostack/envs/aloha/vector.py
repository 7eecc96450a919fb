"""Many ALOHA environments stepped together, on as many cores as there are.

MuJoCo releases the GIL while it steps, so threads are enough, if they do nothing but that: what Python does for each
environment is done for all of them at once, before and after. Of 32 environments on two cores that makes 1.9 times
the steps of one; processes with shared memory make no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, SupportsIndex, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from robostack.envs.aloha.cameras import IMAGES, Camera, image_key, parse_camera
from robostack.envs.aloha.env import AlohaEnv, controls, image_space, observed
from robostack.envs.seeds import seed_of_each


class AlohaVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """`num_envs` independent environments in one process; see `AlohaEnv` for what they observe.

    An episode depends on its own seed and actions alone, not on the batch it runs in. One that is over, truncated or
    diverged, is followed by another in Gymnasium's usual way: its row's next step resets it, whatever the action, with
    reward 0. Sooner with `reset(options={"reset_mask": mask})`. All share one MuJoCo model, `envs[0].model`.
    Single frames come from `envs[i].render_camera`, and what is seen now from `look`.
    """

    metadata = {**AlohaEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    highest_stage: int = AlohaEnv.highest_stage
    rows_per_program: ClassVar[int] = 1
    """A row is a simulation of its own: many in one environment cost as much as each alone."""
    published: ClassVar[Mapping[str, Any]] = {}
    """Settings under which results are published: the defaults."""

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int = 400,
        cameras: Sequence[Camera] = (),
        threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Builds the environments, from `kwargs` for every `AlohaEnv`.

        After `max_episode_steps` an episode is truncated. `cameras` are rendered into every observation. So many
        `threads` step physics at once, by default one per core that this process may use.
        """
        if num_envs < 1:
            raise ValueError(f"expected at least one environment, got num_envs={num_envs}")
        super().__init__()
        self.num_envs = num_envs
        # Without cameras, which are rendered for all of them below. One model: it stays in the cores' caches.
        first = AlohaEnv(**kwargs)
        self.envs = [first, *(AlohaEnv(**kwargs | {"model": first.model}) for _ in range(num_envs - 1))]
        self.cameras = tuple(cameras)
        self.task: str = self.envs[0].task
        self.robot: str = self.envs[0].robot
        self.feature_names, self.feature_units = first.feature_names, first.feature_units
        self.render_mode = self.envs[0].render_mode
        state_spaces = dict(cast(spaces.Dict, self.envs[0].observation_space))
        image_spaces = {image_key(camera): image_space(camera) for camera in self.cameras}
        self.single_observation_space = spaces.Dict({**state_spaces, **image_spaces})
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_episode_steps = max_episode_steps
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._over = np.zeros(num_envs, dtype=bool)
        self._started = np.zeros(num_envs, dtype=bool)
        self._qpos = np.zeros((num_envs, self.envs[0].model.nq))
        self._objects = "observation.environment_state" in state_spaces
        self._threads = min(num_envs, threads or len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="aloha")

    def reset(
        self,
        *,
        seed: SupportsIndex | Iterable[SupportsIndex | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts episodes. `seed` is one for every environment, or a number s for s, s + 1, …

        `options` may hold `reset_mask`, (num_envs,) bool: which to reset (the others keep their episodes); and
        `object_poses`, (num_envs, 7 · objects).
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)))
        poses = options.pop("object_poses", None)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"expected a reset_mask of {self.num_envs} bools, got {mask.dtype} {mask.shape}")
        seeds = seed_of_each(seed, self.num_envs)
        for i in np.flatnonzero(mask):
            self.envs[i].reset(seed=seeds[i], options=options | ({} if poses is None else {"object_poses": poses[i]}))
        self._steps[mask], self._over[mask], self._started[mask] = 0, False, True
        return self._observe(), {"task": [self.task] * self.num_envs}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advances every environment by 20 ms, but those whose episodes are over: they start another.

        From actions (num_envs, 14) to observations, rewards, terminated (the simulation diverged), truncated, and
        `info` with `stage`, `success` and `diverged`, (num_envs,) each; see `AlohaEnv`. Raises ValueError for actions
        of another shape or not finite, RuntimeError where an environment has never been reset.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, 14):
            raise ValueError(f"expected actions of shape {(self.num_envs, 14)}, got {actions.shape}")
        if not np.isfinite(actions).all():  # before any environment has moved
            bad = np.argwhere(~np.isfinite(actions)).tolist()
            raise ValueError(f"expected finite actions, got nan or inf at [environment, dimension] {bad}")
        if not self._started.all():
            waiting = np.flatnonzero(~self._started).tolist()
            raise RuntimeError(f"environments {waiting} have no episode yet: reset them first")
        resting = self._over.copy()
        running = [env for env, over in zip(self.envs, resting, strict=True) if not over]
        for i in np.flatnonzero(resting):  # not in the threads: a reset changes the model's flags for a moment
            self.envs[i].reset()
        self._steps = np.where(resting, 0, self._steps + 1)
        for env, ctrl in zip(running, controls(actions[~resting]), strict=True):
            env.command(ctrl)
        self._advance(running)
        stages, diverged = np.zeros(self.num_envs, dtype=np.int64), np.zeros(self.num_envs, dtype=bool)
        outcomes = np.array([env.outcome() for env in running], dtype=np.int64).reshape(-1, 2)
        stages[~resting], diverged[~resting] = outcomes.T
        truncated = (self._steps >= self._max_episode_steps) & ~diverged
        self._over = diverged | truncated
        return (
            self._observe(),
            stages.astype(np.float64),
            diverged.copy(),
            truncated,
            {
                "task": [self.task] * self.num_envs,
                "stage": stages,
                "success": np.array([env.succeeded for env in self.envs]),
                "diverged": diverged,
            },
        )

    def _advance(self, environments: list[AlohaEnv]) -> None:
        """Physics on all cores: whichever thread is free takes the next environment."""
        queue = iter(environments)

        def work() -> None:
            for env in queue:
                env.advance()

        others = [self._pool.submit(work) for _ in range(min(self._threads, len(environments)) - 1)]
        work()  # the caller works too: one thread fewer to wake
        for other in others:
            other.result()

    def look(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Those of the `wanted` observations that the environments have, at this step, one row per environment.

        `wanted` maps keys to the shape of a row; cameras need not be those of the observations.
        """
        seen = self._observe()
        for key in wanted.keys() - seen.keys():
            if key.startswith(IMAGES):
                camera = parse_camera("{}:{}x{}".format(key.removeprefix(IMAGES), *wanted[key]))
                seen[key] = np.stack([env.render_camera(camera) for env in self.envs])
        return {key: seen[key] for key in wanted if key in seen}

    def picture(self, index: int) -> np.ndarray:
        """One environment for people: (height, width, 3) uint8. It needs the render mode."""
        frame = self.envs[index].render()
        if frame is None:
            raise RuntimeError("expected render_mode 'rgb_array', got None")
        return frame

    def render(self) -> tuple[np.ndarray | None, ...]:
        """One picture per environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads and frees the OpenGL contexts."""
        self._pool.shutdown()
        for env in self.envs:
            env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        for row, env in zip(self._qpos, self.envs, strict=True):
            row[:] = env.data.qpos
        batch = observed(self._qpos, self._objects)
        for camera in self.cameras:
            batch[image_key(camera)] = np.stack([env.render_camera(camera) for env in self.envs])
        return batch
