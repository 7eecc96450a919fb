"""Names that the command line offers. Imports nothing: flags and wrong names answer before torch is imported."""

from __future__ import annotations

from typing import Literal

OptimizerName = Literal["adamw", "muon"]
