"""The CPU engine: a model's decoding as one compiled program over plain arrays."""

from headway.engine.decoder import Engine, Kept
from headway.engine.plan import CannotLowerError

__all__ = ["CannotLowerError", "Engine", "Kept"]
