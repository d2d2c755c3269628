"""All separable candidates of the edges from a state, up to the sum of each edge."""
