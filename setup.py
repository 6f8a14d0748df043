"""The C kernels of an installation; everything else is said by pyproject.toml.

Without a compiler it is an installation that computes with numpy.
"""

import runpy
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
KERNELS = runpy.run_path(str(ROOT / "aggregation" / "native" / "build.py"))


class BuildKernels(build_ext):
    """Makes a plain library where setuptools would make a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        """Beside its sources, under the name that the loader knows."""
        return str(Path(*fullname.split(".")[:-1]) / KERNELS["BUILT"].name)

    def build_extension(self, ext: Extension) -> None:
        """Raises CompileError, which an optional extension survives."""
        try:
            KERNELS["build"](Path(self.get_ext_fullpath(ext.name)))
        except OSError as error:
            raise CompileError(f"no C compiler: {error}") from error
        except subprocess.CalledProcessError as error:
            raise CompileError(error.stderr) from error


setup(
    ext_modules=[
        Extension(
            "aggregation.native.kernels",
            [str(path.relative_to(ROOT)) for path in KERNELS["sources"]()],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
