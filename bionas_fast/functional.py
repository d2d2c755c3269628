"""The ops as functions, without layers around them."""

from bionas_fast.ops.feedback import Feedback, feedback_conv, feedback_linear, feedback_weight
from bionas_fast.ops.hebbian import adaptive_rate, hebbian_activity, hebbian_update, raised_cosine, triangle

__all__ = [
    "Feedback",
    "adaptive_rate",
    "feedback_conv",
    "feedback_linear",
    "feedback_weight",
    "hebbian_activity",
    "hebbian_update",
    "raised_cosine",
    "triangle",
]
