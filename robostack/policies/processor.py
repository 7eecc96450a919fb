"""From the keys, units and texts of a data set or robot to a policy's tensors, and back.

One object does it for training, evaluation and control. It lives in the checkpoint, statistics included, so that
what a policy sees on the robot went the way of what it saw in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robostack.core.text import Vocabulary
from robostack.datasets.episodes import DataError
from robostack.datasets.normalize import Normalizer
from robostack.datasets.statistics import Statistics
from robostack.datasets.store import EpisodeStore
from robostack.policies.protocol import Interface, Observation

IMAGES = "observation.images."


@dataclass(frozen=True)
class Processor:
    """`state_keys` are joined into the policy's state, in this order; `cameras` are names and (height, width)."""

    state_keys: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]
    vocabulary: Vocabulary
    statistics: Mapping[str, Statistics]
    """Of the state keys and of `action`."""

    @staticmethod
    def of(store: EpisodeStore, keys: Sequence[str] = ()) -> Processor:
        """The processor for the observation features `keys` of a data set; for all of them when none is named.

        Raises DataError when a feature is missing or the data set has none to observe; warns of entries that are still.
        """
        keys = tuple(keys) or tuple(key for key in store.features if key.startswith("observation."))
        store.require([*keys, "action"])
        state_keys = tuple(key for key in keys if not store.features[key].is_image)
        if not state_keys:
            raise DataError(f"{store.path}: expected a state to observe, got {', '.join(keys) or 'no features'}")
        if wrong := [key for key in (*state_keys, "action") if len(store.features[key].shape) != 1]:
            raise DataError(f"{store.path}: expected vectors, got {', '.join(wrong)} of more or fewer dimensions")
        cameras = {
            key.removeprefix(IMAGES): (store.features[key].shape[0], store.features[key].shape[1])
            for key in keys
            if store.features[key].is_image
        }
        of_all = store.statistics()
        statistics = {key: of_all[key] for key in (*state_keys, "action")}
        for key, values in statistics.items():
            values.warn_of_still_entries(key, store.features[key].names)
        return Processor(state_keys, cameras, Vocabulary.of(store.tasks), statistics)

    @property
    def observation_keys(self) -> tuple[str, ...]:
        return (*self.state_keys, *(IMAGES + name for name in self.cameras))

    @property
    def interface(self) -> Interface:
        return Interface(
            state_dim=sum(len(self.statistics[key].mean) for key in self.state_keys),
            action_dim=len(self.statistics["action"].mean),
            words=self.vocabulary.length,
            vocabulary=self.vocabulary.size,
            cameras=self.cameras,
        )

    @cached_property
    def _normalizers(self) -> dict[str, Normalizer]:
        if missing := [key for key in (*self.state_keys, "action") if key not in self.statistics]:
            raise DataError(f"statistics of {', '.join(missing)} are missing: the checkpoint is not whole")
        return {key: Normalizer.of(statistics) for key, statistics in self.statistics.items()}

    def observe(
        self, observation: Mapping[str, np.ndarray], tasks: Sequence[str], device: torch.device | str = "cpu"
    ) -> Observation:
        """Raw observations (batch, ...) by data set key, and the batch's task texts, as a policy's observation.

        Raises DataError for a missing key, a wrong shape or values that are not finite.
        """
        state = []
        for key in self.state_keys:
            rows = self._checked(observation, key, (len(tasks), len(self.statistics[key].mean)))
            if not np.isfinite(rows).all():
                raise DataError(f"{key} is not finite: the sensor or the data is broken")
            state.append(self._normalizers[key].forward(rows.astype(np.float32, copy=False)))
        images = {
            name: torch.from_numpy(self._checked(observation, IMAGES + name, (len(tasks), *size, 3))).to(device)
            for name, size in self.cameras.items()
        }
        return Observation(
            state=torch.from_numpy(np.concatenate(state, axis=1)).to(device),
            text=torch.from_numpy(self.vocabulary.encode(tasks)).to(device),
            images=images,
        )

    def _checked(self, observation: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in observation:
            raise DataError(f"the policy observes {key}, got only {', '.join(observation)}")
        if observation[key].shape != shape:
            raise DataError(f"{key}: expected shape {shape}, got {observation[key].shape}")
        return observation[key]

    def normalize_actions(
        self, actions: np.ndarray, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """Actions in the robot's units to the policy's."""
        return torch.from_numpy(self._normalizers["action"].forward(actions)).to(device)

    def denormalize_actions(self, actions: Float[Tensor, "batch chunk_len action_dim"]) -> np.ndarray:
        """The policy's actions in the robot's units; undoes `normalize_actions`."""
        return self._normalizers["action"].inverse(actions.float().cpu().numpy())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cameras": {name: list(size) for name, size in self.cameras.items()}}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Processor:
        """Undoes `to_json`; raises KeyError or TypeError where something is missing or unknown."""
        return Processor(
            state_keys=tuple(values["state_keys"]),
            cameras={name: (int(size[0]), int(size[1])) for name, size in values["cameras"].items()},
            vocabulary=Vocabulary(tuple(values["vocabulary"]["words"]), values["vocabulary"]["length"]),
            statistics={key: Statistics.from_json(s) for key, s in values["statistics"].items()},
        )
