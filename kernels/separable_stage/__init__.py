"""K separable stages at once: ReLU, depthwise k×k, pointwise 1×1, and the sums for batch normalisation."""
