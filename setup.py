"""Packages and their folders; everything else about the project is in pyproject.toml.

The kernels live beside the package, in `kernels/`, and are installed inside it as `bionas_fast.kernels`.
"""

from setuptools import find_packages, setup

library = find_packages(include=["bionas_fast", "bionas_fast.*"])
kernels = ["bionas_fast.kernels"] + [f"bionas_fast.kernels.{name}" for name in find_packages("kernels")]

setup(
    packages=library + kernels,
    package_dir={"bionas_fast": "bionas_fast", "bionas_fast.kernels": "kernels"},
    package_data={"bionas_fast.presets": ["*.yaml"]},
)
