"""The device, the processes and the precision of a run."""
