"""The device, the processes and the precision that a run computes with."""
