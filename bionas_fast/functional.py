"""Functional interface of the ops."""

from bionas_fast.kernels.feedback.records import Feedback
from bionas_fast.ops.feedback import feedback_conv, feedback_linear, feedback_weight
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
