"""Sums of partial sums: what several programs added up in memory of their own becomes one flat tensor."""
