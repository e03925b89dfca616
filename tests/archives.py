"""Tar archives that are made in memory."""

import io
import subprocess
import tarfile

from requirements import need_program


def archive(*members):
    """A tar archive's bytes; a member is a tarfile.TarInfo, or that and its bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def info(name, kind=tarfile.REGTYPE, **attributes):
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.mtime = (
        kind,
        0o755 if kind == tarfile.DIRTYPE else 0o644,
        1_000_000_000,
    )
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def compressed(program, data):
    need_program(program)
    return subprocess.run([program, "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
