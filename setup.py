"""Build with the settings of pyproject.toml."""

from setuptools import setup

setup()
