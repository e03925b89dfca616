"""Packaging; all but the list of executables is in setup.cfg."""

from glob import glob

from setuptools import setup

setup(scripts=["bin/plash", *sorted(glob("libexec/plash-*"))])
