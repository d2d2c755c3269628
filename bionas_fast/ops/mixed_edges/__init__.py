"""The op mixed_edges: the mixed candidates of all edges from a state of a cell."""
