"""Builds the extensions of fastgru._native; everything else is in pyproject.toml.

FASTGRU_NO_OPENMP=1 builds without OpenMP, as does a compiler that has none. FASTGRU_NO_VECTORS=1
builds without the fused kernels, as does a compiler without GNU's vector types (MSVC): what serves
there can be tested here.
"""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

NATIVE = Path("fastgru") / "_native"
KERNELS = NATIVE / "kernels"

# No -ffast-math: NaN and the rounding trick of isa_template.h need IEEE arithmetic. gnu11, not
# c11, which would turn contraction to fused multiply-add off.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11", "-g0"]
OPENMP = {
    "unix": [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])],
    "msvc": [(["/openmp"], [])],
}
# Imported before backends/cpu.py has said how long the threads of OpenMP's runtime may spin.
WITHOUT_OPENMP = {"fastgru._native._held"}
PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


NO_COMPILER = """
fastgru is compiled when it is installed from its sources, and there is no C compiler here ({}).
  Debian, Ubuntu: apt-get install gcc python3-dev     Fedora: dnf install gcc python3-devel
  Alpine: apk add build-base python3-dev              macOS: xcode-select --install
  conda: conda install c-compiler
"""


def asked_for(name):
    """Return whether an environment variable is set to anything but 0."""
    return os.environ.get(name, "0") not in ("", "0")


def side_by_side(compile_sources):
    """Return a compiler's method that compiles the sources of an extension at the same time."""

    def compile_all(sources, *args, **kwargs):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda source: compile_sources([source], *args, **kwargs), sources)
            return [name for names in done for name in names]

    return compile_all


class BuildExt(build_ext):
    """Adds the flags of the compiler at hand; compiles extensions and their files side by side."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or True  # as many as there are processors

    def build_extensions(self):
        """Build; raise CompileError with what to install if there is no compiler."""
        msvc = self.compiler.compiler_type == "msvc"
        if asked_for("FASTGRU_NO_VECTORS"):
            self.compiler.define_macro("FASTGRU_NO_VECTORS")
        compile_flags, link_flags = self.openmp_flags()
        for extension in self.extensions:
            extension.extra_compile_args += ["/O2"] if msvc else FLAGS
            if extension.name not in WITHOUT_OPENMP:
                extension.extra_compile_args += compile_flags
                extension.extra_link_args += link_flags
        if self.compiler.compiler_type == "unix":
            if shutil.which(self.compiler.compiler[0]) is None:
                raise CompileError(NO_COMPILER.format(self.compiler.compiler[0]))
            self.compiler.compile = side_by_side(self.compiler.compile)
        super().build_extensions()

    def openmp_flags(self):
        """Return (compile, link) flags with which a small OpenMP program builds, or none."""
        if asked_for("FASTGRU_NO_OPENMP"):
            return [], []
        for compile_flags, link_flags in OPENMP.get(self.compiler.compiler_type, []):
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "openmp.c")
                source.write_text(PROGRAM)
                try:
                    objects = self.compiler.compile(
                        [str(source)], output_dir=folder, extra_postargs=compile_flags
                    )
                    self.compiler.link_executable(
                        objects, "openmp", output_dir=folder, extra_postargs=link_flags
                    )
                except (CCompilerError, CompileError, ExecError, LinkError, PlatformError):
                    continue
                return compile_flags, link_flags
        print("fastgru: no OpenMP found; the extension will run on one thread")
        return [], []


HEADERS = [str(path) for path in (*sorted(KERNELS.glob("*.h")), *sorted(NATIVE.glob("*.pxd")))]


def extension(name, *sources):
    """Return the extension fastgru._native.NAME."""
    return Extension(
        f"fastgru._native.{name}",
        [str(NATIVE / source) for source in (f"{name}.pyx", *sources)],
        include_dirs=[str(KERNELS), np.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        depends=HEADERS,
    )


setup(
    ext_modules=cythonize(
        [
            extension("_backward"),
            extension("_blas"),
            extension("_coalescing"),
            extension("_command_list"),
            extension("_execute"),
            extension("_fast_path"),
            extension("_forward"),
            extension("_held"),
            extension("_kernels", *sorted(f"kernels/{path.name}" for path in KERNELS.glob("*.c"))),
            extension("_partition"),
            extension("_stream"),
            extension("_threads"),
            extension("_weights"),
        ],
        build_dir="build",
    ),
    cmdclass={"build_ext": BuildExt},
)
