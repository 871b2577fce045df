"""Builds the extension module for the stable ABI of Python 3.11 and later."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "kbridge_speedups",
            ["kbridge_speedups.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=c11"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
