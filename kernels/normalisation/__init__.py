"""Batch normalisation of maps whose sums are known: moments, affine maps, running statistics, and their gradients."""
