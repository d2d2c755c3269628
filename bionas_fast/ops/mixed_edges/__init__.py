"""The op mixed_edges: all candidates of all edges that leave a state of a cell, mixed."""
