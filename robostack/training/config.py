"""What a training run is told, apart from the policy's architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robostack.common.numbers import check_bounds
from robostack.core.names import OptimizerName
from robostack.policies.settings import Augmentation, Scaling, TextSettings


@dataclass(frozen=True)
class TrainConfig:
    """Data, optimiser and run."""

    data: tuple[Path, ...]
    """Data set to train on, or several."""
    out: Path
    """Folder of the run; must not exist yet, or be empty."""
    convert: bool = False
    """Convert data in another format first, into DATA.robostack beside it, which later runs use again."""
    observe: tuple[str, ...] = ()
    """Observation features the policy sees; all of the data sets when none is named."""
    weights: tuple[float, ...] = ()
    """Share of each data set in a batch, up to a factor; by default their numbers of frames."""
    robots: tuple[str, ...] = ()
    """Robot of each data set; by default as they record it. Data sets of one robot share statistics."""
    rate: float | None = None
    """Actions a second, to which actions of other data sets are interpolated; by default that of the data."""
    scaling: Scaling = field(default_factory=Scaling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    text: TextSettings = field(default_factory=TextSettings)
    init: Path | None = None
    """Checkpoint, or run, whose weights the training begins with; its policy must have the same settings."""
    init_except: tuple[str, ...] = ()
    """Patterns of tensors that are drawn all the same, such as 'action_out.*' for other actions."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that stay as they are, such as 'cameras.*' of pi0."""
    frame_stride: int = 1
    """Every n-th frame starts a training window; fewer windows keep more of the images in the page cache."""
    steps: int = 3000
    batch: int = 128
    """Windows that go through the policy at once."""
    accumulate: int = 1
    """Batches whose gradients add up to one step: a larger batch in the memory of one."""
    optimizer: OptimizerName = "adamw"
    """`muon` moves the matrices inside a transformer's blocks by orthogonalised momentum, the rest as AdamW."""
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    """Steps over which the learning rate rises; it then falls to 0 along a cosine."""
    weight_decay: float = 1e-2
    """Of the weights of linear layers and convolutions; not of embeddings, learned tokens, norms and biases."""
    gradient_clip: float = 1.0
    """Bound of the gradient's norm."""
    average_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which evaluation uses; 0 keeps none."""
    average_device: Literal["same", "cpu"] = "same"
    """Where the average is: `cpu` spares a GPU's memory, and copies the weights at every step."""
    seed: int = 0
    device: str = "auto"
    """`auto` takes a GPU when there is one, else the CPU."""
    threads: int = 0
    """CPU threads; 0 takes torch's choice. Another number sums in another order, so that runs are equal only at
    an equal number."""
    log_every: int = 50
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        check_bounds(self, 1, 10**9, "frame_stride", "steps", "batch", "accumulate", "log_every", "checkpoint_every")
        check_bounds(self, 0, 2**63 - 1, "seed")
        check_bounds(self, 0, 10**6, "threads")
        check_bounds(self, 0, 10**9, "warmup_steps")
        check_bounds(self, 0.0, 1e30, "weight_decay", "gradient_clip")
        check_bounds(self, 0.0, 1.0, "average_decay")
        if self.init_except and self.init is None:
            raise ValueError("--init-except is for a training that begins with the weights of --init CKPT")
        if not self.data:
            raise ValueError("data must name at least one data set")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate must be positive, got {self.rate}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
