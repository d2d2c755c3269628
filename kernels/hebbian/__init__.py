"""Hebbian updates of a layer's weights."""
