"""Packages and their folders, and the compiled kernels; everything else about the project is in pyproject.toml.

The kernels live beside the package: `kernels/` is installed inside it as `bionas_fast.kernels`, and so are the sources
of the compiled ones, `csrc/`, for a library that is to be compiled on first use. Where torch is at hand (it is not in
pip's isolated builds) the library is compiled here and now instead, as `bionas_fast._C`.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

spec = importlib.util.spec_from_file_location("native", Path(__file__).parent / "bionas_fast" / "native.py")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildKernels(build_ext):
    """Without a compiler that works there is still a package; it says at run time why its kernels are missing."""

    def build_extension(self, extension):
        try:
            native.compile_library(Path(self.get_ext_fullpath(extension.name)).resolve())
        except (native.BuildError, OSError) as error:
            print(f"bionas-fast: CPU kernels not compiled ahead of time: {error}", file=sys.stderr)


library = find_packages(include=["bionas_fast", "bionas_fast.*"])
kernels = ["bionas_fast.kernels"] + [f"bionas_fast.kernels.{name}" for name in find_packages("kernels")]
# The library holds no Python symbol at all, so it serves every version, which abi3 tells pip.
extension = Extension("bionas_fast._C", sources=[], py_limited_api=True, optional=True)

setup(
    packages=[*library, *kernels, "bionas_fast.csrc"],
    package_dir={"bionas_fast": "bionas_fast", "bionas_fast.kernels": "kernels", "bionas_fast.csrc": "csrc"},
    package_data={
        "bionas_fast.presets": ["*.yaml"],
        "bionas_fast.csrc": ["**/*.cpp", "**/*.h", "**/*.inc", "**/*.cu", "**/*.cuh"],
    },
    ext_modules=[extension] if sys.platform != "win32" and importlib.util.find_spec("torch") else [],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
