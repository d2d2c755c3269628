"""All separable candidates of the edges that leave a state, from the state to the sums of the edges."""
