"""Packaging: what setup.cfg can't say."""

import os
import subprocess
import sys
from glob import glob

from setuptools import setup
from setuptools.command.build_py import build_py

BUILT_PAGES = "build/man/man1"


class build(build_py):
    """Adds the man pages, where docutils is there to make them."""

    def run(self):
        super().run()
        try:
            import docutils  # noqa: F401
        except ImportError:
            return
        subprocess.run([sys.executable, "man/generate.py", BUILT_PAGES], check=True)
        self.distribution.data_files.append(("share/man/man1", sorted(glob(BUILT_PAGES + "/*"))))


os.chdir(os.path.dirname(os.path.abspath(__file__)))
setup(
    scripts=["bin/plash", *sorted(glob("libexec/plash-*"))],
    data_files=[
        ("share/doc/plash", ["README.md", "CHANGELOG.md"]),
        ("share/doc/plash/docs", sorted(glob("docs/*.md") + glob("docs/*.svg"))),
        ("share/bash-completion/completions", ["completions/plash.bash"]),
        ("share/zsh/site-functions", ["completions/_plash"]),
        ("share/fish/vendor_completions.d", ["completions/plash.fish"]),
    ],
    cmdclass={"build_py": build},
)
