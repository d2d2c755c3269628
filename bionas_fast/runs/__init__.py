"""Runs: the trainer, its folder and checkpoints, and how it stops and resumes."""
