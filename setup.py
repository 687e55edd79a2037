"""Only the extension: everything else is in pyproject.toml.

No `cythonize()` here: setuptools compiles a `.pyx` source itself, and so the `.pyx` stays in the sdist.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "_fastqueue._queue",
            ["_fastqueue/_queue.pyx"],
            depends=["_fastqueue/_queue.pxd"],
            # Usage is defined as IEEE doubles without contraction or reassociation (semantics 6).
            extra_compile_args=["-O3", "-ffp-contract=off"],
        )
    ]
)
