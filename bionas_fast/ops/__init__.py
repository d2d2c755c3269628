"""The ops: validation, choice of the backend, autograd. One file per op."""
