"""Feedback weights and the backward passes that use them."""
