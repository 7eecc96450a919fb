"""Many ALOHA environments stepped together, on as many cores as there are.

MuJoCo releases the GIL while it steps, so threads are enough: no processes, no copies between them.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from robostack.envs.aloha.cameras import IMAGES, Camera, image_key, parse_camera
from robostack.envs.aloha.env import AlohaEnv, image_space


class AlohaVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """`num_envs` independent environments in one process; see `AlohaEnv` for what they observe.

    An episode depends on its own seed and actions alone, not on the batch it runs in. There is no automatic reset:
    one that has been truncated must be reset, alone with `options={"reset_mask": mask}` or with all others.
    Single frames come from `envs[i].render_camera`, and what is seen now from `look`.
    """

    metadata = {**AlohaEnv.metadata, "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    highest_stage: int = AlohaEnv.highest_stage
    together: int = 1
    """Episodes that an evaluation runs in one of these: processes share the cores better than threads do."""
    evaluation: ClassVar[Mapping[str, Any]] = {}
    """How an evaluation makes it."""

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int = 400,
        cameras: Sequence[Camera] = (),
        threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Builds the environments.

        Args:
            num_envs: how many.
            max_episode_steps: after so many steps an episode is truncated.
            cameras: rendered into every observation.
            threads: how many step physics at once; by default one a core that this process may use.
            kwargs: for every `AlohaEnv`.
        """
        if num_envs < 1:
            raise ValueError(f"expected at least one environment, came num_envs={num_envs}")
        super().__init__()
        self.num_envs = num_envs
        # An OpenGL context belongs to one thread, so the threads step environments without cameras.
        self.envs = [AlohaEnv(**kwargs) for _ in range(num_envs)]
        self.cameras = tuple(cameras)
        self.task: str = self.envs[0].task
        self.robot: str = self.envs[0].robot
        self.render_mode = self.envs[0].render_mode
        state_spaces = dict(cast(spaces.Dict, self.envs[0].observation_space))
        image_spaces = {image_key(camera): image_space(camera) for camera in self.cameras}
        self.single_observation_space = spaces.Dict({**state_spaces, **image_spaces})
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_episode_steps = max_episode_steps
        self._steps = np.full(num_envs, max_episode_steps)  # an environment that was never reset is over
        threads = min(num_envs, threads or len(os.sched_getaffinity(0)))
        # Each thread owns a fixed share: one task a thread and step, whatever the number of environments.
        self._shares = [range(first, num_envs, threads) for first in range(threads)]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="aloha")

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts episodes.

        Args:
            seed: one for every environment, or a number s for s, s + 1, …
            options: may hold `reset_mask`, (num_envs,) bool: which to reset (the others keep their episodes);
                and `object_poses`, (num_envs, 7 · objects).
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)))
        poses = options.pop("object_poses", None)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"expected a reset_mask of {self.num_envs} bools, came {mask.dtype} {mask.shape}")
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, came {len(seeds)}")
        for i in np.flatnonzero(mask):
            self.envs[i].reset(seed=seeds[i], options=options | ({} if poses is None else {"object_poses": poses[i]}))
        self._steps[mask] = 0
        return self._batch([env.observe() for env in self.envs]), {"task": [self.task] * self.num_envs}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advances every environment by 20 ms; `actions` is (num_envs, 14).

        Raises:
            ValueError: an action has another shape or is not finite.
            FloatingPointError: a simulation diverged.
            RuntimeError: an episode is over and has not been reset.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, 14):
            raise ValueError(f"expected actions of shape {(self.num_envs, 14)}, came {actions.shape}")
        if not np.isfinite(actions).all():  # before any environment has moved
            bad = np.argwhere(~np.isfinite(actions)).tolist()
            raise ValueError(f"expected finite actions, came nan or inf at [environment, dimension] {bad}")
        if (self._steps >= self._max_episode_steps).any():
            over = np.flatnonzero(self._steps >= self._max_episode_steps).tolist()
            raise RuntimeError(f"the episodes of environments {over} are over: reset them first")
        results: list[Any] = [None] * self.num_envs

        def step_share(share: range) -> None:
            # Whole steps, so that one thread's Python runs while another is in MuJoCo.
            for i in share:
                results[i] = self.envs[i].step(actions[i])

        others = [self._pool.submit(step_share, share) for share in self._shares[1:]]
        step_share(self._shares[0])  # the caller works too: one thread fewer to wake
        for other in others:
            other.result()
        self._steps += 1
        observations, rewards, _, _, infos = zip(*results, strict=True)
        return (
            self._batch(observations),
            np.array(rewards),
            np.zeros(self.num_envs, dtype=bool),
            self._steps >= self._max_episode_steps,
            {
                "task": [self.task] * self.num_envs,
                "stage": np.array([info["stage"] for info in infos]),
                "success": np.array([info["success"] for info in infos]),
            },
        )

    def look(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Those of the `wanted` observations that there are, as they are now, each with a row an environment.

        `wanted` maps keys to the shape of a row; cameras need not be those of the observations.
        """
        seen = self._batch([env.observe() for env in self.envs])
        for key in wanted.keys() - seen.keys():
            if key.startswith(IMAGES):
                camera = parse_camera("{}:{}x{}".format(key.removeprefix(IMAGES), *wanted[key]))
                seen[key] = np.stack([env.render_camera(camera) for env in self.envs])
        return {key: seen[key] for key in wanted if key in seen}

    def picture(self, index: int) -> np.ndarray:
        """One environment for people: (height, width, 3) uint8. It needs the render mode."""
        frame = self.envs[index].render()
        if frame is None:
            raise RuntimeError("expected render_mode 'rgb_array', came None")
        return frame

    def render(self) -> tuple[np.ndarray | None, ...]:
        """One picture an environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads and frees the OpenGL contexts."""
        self._pool.shutdown()
        for env in self.envs:
            env.close()

    def _batch(self, observations: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        batch = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        for camera in self.cameras:
            batch[image_key(camera)] = np.stack([env.render_camera(camera) for env in self.envs])
        return batch
