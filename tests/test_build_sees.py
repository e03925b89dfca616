"""build: it reads the host and can't change it, and all that it started ends with plash."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from requirements import as_user, kind_of_user, need, need_program, needs_subordinate_ids
from world import LIBEXEC, ROOT, wait_for

# A host to throw away: a tmpfs with the real host's programs read-only, and a pid namespace.
THROW_AWAY = r"""
set -e
mount -t tmpfs throw-away "$1"; cd "$1"
mkdir usr repo dev proc etc tmp home home/u srv opt store
for each in bin sbin lib lib32 lib64; do
    if [ -L /$each ]; then cp -d /$each .; elif [ -d /$each ]; then mkdir $each; mount --rbind /$each $each; fi
done
mount --rbind /usr usr; mount -o remount,bind,ro usr
mount --bind "$2" repo; mount -o remount,bind,ro repo
cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache etc || :
echo precious >home/u/file; echo precious >tmp/file; echo precious >srv/file; echo precious >etc/file
echo 127.0.0.1 localhost >etc/hosts; echo nameserver 127.0.0.1 >etc/resolv.conf
mkdir opt/mount; mount -t tmpfs other opt/mount; echo precious >opt/mount/file
mount -t tmpfs dev dev
for each in null zero full random urandom tty; do : >dev/$each; mount --bind /dev/$each dev/$each; done
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
cp "$3" host.tar
mkdir old; pivot_root . old; umount -l old; rmdir old
cd /
export PLASH_DATA=/store/data HOME=/home/u PATH=/usr/sbin:/usr/bin:/sbin:/bin PLASH_NO_SYNC=1
chmod 777 store
"""


@pytest.fixture
def throw_away(plash, host_tar, tmp_path):
    """A function that runs shell code as this kind of user on a host to throw away."""
    need(os.path.realpath(sys.executable).startswith("/usr/"), "a Python below /usr")

    def run(code):
        (tmp_path / "throw-away").mkdir(exist_ok=True)
        setup = THROW_AWAY
        inner = "sh -ec " + shlex.quote(code)
        if kind_of_user() != "root":
            # Inside, plash is started by a user without privileges.
            inner = "chown -R 0:0 /store; unshare --user --map-user=1000 --map-group=1000 " + inner
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        words += ["sh", "-c", setup + inner, "sh", tmp_path / "throw-away", ROOT, host_tar]
        return plash("sudo", *words)

    return run


DESTRUCTIVE = {
    "rm of all": "rm -rf --no-preserve-root / || :",
    "rm of homes": "rm -rf /home/* /tmp/* /root /host /var /run || :",
    "find -delete": "find / -xdev -delete 2>/dev/null || :",
    "find -delete everywhere": "find / -delete 2>/dev/null || :",
    "find of compiled files": "find / -name file -delete || :",
    "chown": "chown -R 5 / || :",
    "chmod": "chmod -R 0 / || :",
    "kill": "kill -9 -1; echo still here",
    "remount": "mount -o remount,rw,bind /host; rm -rf /host/home/u/file /host/etc/file || :",
    "unmount": "umount -l /host; umount -l /dev; umount -l /proc; rm -rf /host/* || :",
    "move": "mv /host/home/u/file /x; cp /bin/true /host/home/u/file; : >/host/etc/file || :",
}


@pytest.mark.parametrize("code", DESTRUCTIVE.values(), ids=DESTRUCTIVE)
def test_a_build_cannot_destroy_the_host(throw_away, code):
    tools = "sh rm find chown chmod mount umount mv cp true ls cat kill sleep"
    listing = "find / /opt/mount /dev -xdev ! -path '/store*' ! -path '/proc/*' -printf '%p %y %m %U %s %T@\\n'"
    done = throw_away(f"""
        exec 3>&2 2>/store/err
        trap 'cat /store/err >&3' EXIT
        id=$(/repo/libexec/plash-pull:host {tools})
        sleep 1000 & sleeps=$!
        {listing} | sort >/store/before
        /repo/libexec/plash-build $id {shlex.quote(code)} >/store/out 2>&1 || :
        {listing} | sort >/store/after
        diff /store/before /store/after >&2
        cat /home/u/file /tmp/file /srv/file /etc/file /opt/mount/file
        kill -0 $sleeps && kill $sleeps
        tail -n 3 /store/out
        """)
    assert done.ok().out.startswith("precious\n" * 5)
