"""Weighted sums of maps."""
