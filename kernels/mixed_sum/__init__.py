"""The weighted sum of many maps into few."""
