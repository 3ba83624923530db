"""batches → a trained network, its evaluation and figures."""

from .network import AlexNet
from .recipe import Recipe

__all__ = ["AlexNet", "Recipe"]
