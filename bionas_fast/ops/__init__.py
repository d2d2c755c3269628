"""The ops: validate, choose the backend, autograd. One file per op contract."""
