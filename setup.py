"""Install the recipes in ``pipelines/`` as ``featpipe.pipelines``; the rest is in pyproject.toml.

Declaratively, one such folder outside the package would need a list of all packages by hand.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["featpipe*"]), "featpipe.pipelines"],
    package_dir={"featpipe.pipelines": "pipelines"},
)
