"""Runs on disk: the folder, checkpoints, the trainer that survives whatever stops it."""
