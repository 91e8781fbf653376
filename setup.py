"""Metadata and dependencies of `tf_natgrad`."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "tf_natgrad" / "__init__.py").read_text()).group(1)

setup(
    name="tf-natgrad",
    version=VERSION,
    description="Natural gradients and curvature for TensorFlow 2 and Keras 3",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tf_natgrad", "tf_natgrad.*"]),
    package_data={"tf_natgrad": ["py.typed"]},
    python_requires=">=3.11",
    # `.ci/run` tries the lowest versions named here.
    install_requires=[
        "tensorflow>=2.20",
        "keras>=3.15",
        "tensorflow-probability[tf]>=0.25",
        "tensorflow-datasets>=4.9.8",
        "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not declare it
        "numpy>=1.26",
        "scipy>=1.11.2",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "scikit-learn>=1.3.1",  # carries the digits that stand in for MNIST without a network
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5", "gymnasium>=1.1"],
        "rl": ["gymnasium>=1.1"],
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "docs": [
            "mkdocs>=1.6.1,<2",  # 2 reads neither this configuration nor hooks
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=1.0",
            "mkdocstrings-python>=2.0",
            "ruff>=0.9",  # breaks the lines of signatures
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
