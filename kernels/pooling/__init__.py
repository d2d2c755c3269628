"""The two pools of a cell in one pass."""
