"""Packages and their folders, and the compiled kernels; everything else about the project is in pyproject.toml.

The kernels live next to the package: `kernels/` is installed inside it as `bionas_fast.kernels`, and so are the sources
of the compiled ones, `csrc/`, for a library that is to be compiled on first use. Where torch is at hand (it is not in
pip's isolated builds) the library is compiled here and now instead, as `bionas_fast._C`.

In a checkout `bionas_fast/kernels` is a link to `kernels/`, for type checkers and editors. Nothing is installed through
it: file systems and archives without links lose it.

`BIONAS_CUDA_ARCHITECTURES="80 90"` asks for `bionas_fast._C_cuda` too, the kernels for CUDA, for GPUs of these compute
capabilities and newer ones; it needs nvcc and a torch with CUDA, but no GPU.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

spec = importlib.util.spec_from_file_location("build", Path(__file__).parent / "bionas_fast" / "native" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

architectures = os.environ.get("BIONAS_CUDA_ARCHITECTURES", "").replace(",", " ").split()


class BuildKernels(build_ext):
    """Without a compiler that works there is still a package; it says at run time why its kernels are missing."""

    def build_extension(self, extension):
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        kernels = "CUDA" if extension.name.endswith("cuda") else "CPU"
        try:
            if kernels == "CUDA":
                build.compile_cuda_library(output, architectures)
            else:
                build.compile_library(output)
        except (build.BuildError, OSError) as error:
            print(f"bionas-fast: {kernels} kernels not compiled ahead of time: {error}", file=sys.stderr)


linked = ["bionas_fast.kernels", "bionas_fast.kernels.*"]
library = find_packages(include=["bionas_fast", "bionas_fast.*"], exclude=linked)
kernels = ["bionas_fast.kernels", *(f"bionas_fast.kernels.{name}" for name in find_packages("kernels"))]
# The libraries hold no Python symbol at all, so they serve every version, which abi3 tells pip.
names = ["bionas_fast._C", *(["bionas_fast._C_cuda"] if architectures else [])]
extensions = [Extension(name, sources=[], py_limited_api=True, optional=True) for name in names]

setup(
    packages=[*library, *kernels, "bionas_fast.csrc"],
    package_dir={"bionas_fast": "bionas_fast", "bionas_fast.kernels": "kernels", "bionas_fast.csrc": "csrc"},
    package_data={
        "bionas_fast": ["py.typed"],
        "bionas_fast.presets": ["*.yaml"],
        "bionas_fast.reproduce": ["*.yaml"],
        "bionas_fast.space": ["*.yaml"],
        "bionas_fast.csrc": ["**/*.cpp", "**/*.h", "**/*.inc", "**/*.cu", "**/*.cuh"],
    },
    ext_modules=extensions if sys.platform != "win32" and importlib.util.find_spec("torch") else [],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
