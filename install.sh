#!/bin/sh
# Install plash below PREFIX, or remove it: what `make install`, `make uninstall` and
# `make install-apparmor` run.
#
# Usage: install.sh [uninstall | apparmor]
#
# The environment says what the variables of the Makefile say: PREFIX, DESTDIR, PYTHON, BUNDLE.
# All checks come first. All files are then made in a directory beside their destination, and
# moved from there, so that a failure leaves what was there before. libexec/plash/installed lists
# the files; `uninstall`, and the next install, remove those.

set -eu
umask 022

fail() {
    printf 'make %s: %s\n' "$target" "$1" >&2
    exit 1
}

# The Python that finds the module $1, of the arguments that follow; isolated from the caller's own packages.
python_with() {
    module=$1
    shift
    for candidate; do
        if "$candidate" -I -c "import $module" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# Where the module $1 is: of the system, or bundled by an earlier install; empty where it is not.
where() {
    if python_with "$1" "$interpreter" >/dev/null; then
        echo "of the system"
    elif [ -e "$root/libexec/plash/$1" ] || [ -e "$root/libexec/plash/$1.py" ]; then
        echo "bundled already"
    fi
}

# Download the package $1, with more options of pip, to $temporary/bundle.
download() {
    [ -d "$temporary/venv" ] || "$interpreter" -m venv "$temporary/venv"
    PIP_USER=0 "$temporary/venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 --no-deps \
        --target "$temporary/bundle" "$@" 2>"$temporary/errors"
}

# Fail unless the directory $1 can be made and written to; $made is the topmost that has to be made, if any.
need_writable() {
    directory=$1 made=
    until [ -e "$directory" ]; do made=$directory directory=$(dirname -- "$directory"); done
    { [ -d "$directory" ] && [ -w "$directory" ]; } || fail "cannot write to $directory (another PREFIX, or root, can)"
}

# The paths of an installed plash, relative to PREFIX. A plash from before the list was kept has none.
installed() {
    if [ -e "$root/libexec/plash/installed" ]; then
        cat "$root/libexec/plash/installed"
    elif [ -x "$root/libexec/plash/plash-help" ]; then
        (
            cd "$root"
            find libexec/plash ! -type d
            for path in bin/plash bin/plash-* share/man/man1/plash.1 share/man/man1/plash-*.1 \
                share/bash-completion/completions/plash share/zsh/site-functions/_plash \
                share/fish/vendor_completions.d/plash.fish; do
                [ ! -f "$path" ] || printf '%s\n' "$path"
            done
        )
    fi
}

# shellcheck disable=SC2329
uninstall() {
    if grep -sqF "\"$libexec/" "$profile"; then
        rm "$profile"
        echo "removed $profile"
    fi
    list=$(installed)
    [ -n "$list" ] || fail "no plash is installed below $root"
    need_writable "$root/libexec/plash"
    need_writable "$root/bin"
    printf '%s\n' "$list" | while IFS= read -r path; do rm -f "$root/$path"; done
    rm -rf "$root/libexec/plash/plashlib/__pycache__" "$root/libexec/plash/__pycache__"
    for directory in libexec/plash share/doc/plash; do
        [ ! -d "$root/$directory" ] || find "$root/$directory" -depth -type d -empty -delete
    done
    echo "removed plash from $root"
}

# shellcheck disable=SC2329
apparmor() {
    need_writable "${profile%/*}"
    mkdir -p "${profile%/*}"
    sed "s|@libexecdir@|$(printf '%s' "$libexec" | sed 's/[\\&|]/\\&/g')|" apparmor/plash >"$profile"
    echo "installed $profile, for $libexec/plash-*"
    if [ -n "${DESTDIR-}" ]; then
        :
    elif [ ! -d /sys/kernel/security/apparmor ]; then
        echo "AppArmor does not run here: it is not loaded"
    else
        apparmor_parser --replace "$profile" && echo "loaded; after a reboot it is loaded by itself"
    fi
}

# shellcheck disable=SC2329
clean_up() {
    rm -rf "$temporary" ${new:+"$new"}
    [ ! -d "$made" ] || find "$made" -depth -type d -empty -delete
}

# shellcheck disable=SC2329
install() {
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' plashlib/__init__.py)

    # What is needed.
    command -v "$PYTHON" >/dev/null || fail "$PYTHON is not installed (PYTHON=... names another Python)"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
        fail "$PYTHON is not Python 3.9 or newer (PYTHON=... names another one)"
    interpreter=$("$PYTHON" -c 'import sys; print(sys.executable)')
    case $interpreter in
        *[[:space:]]*) fail "the path of the interpreter has a space in it, which #! lines cannot have: $interpreter" ;;
    esac
    for path in bin share libexec/plash; do need_writable "$root/$path"; done
    docopt="not bundled" parser=
    if [ -n "$BUNDLE" ]; then
        docopt=$(where docopt) parser=$(where e2b_dockerfile_utils)
        [ -n "$docopt" ] || python_with ensurepip "$interpreter" >/dev/null ||
            fail "docopt is not installed, and Python's venv, to download it, neither (on Debian: apt install python3-docopt, or python3-venv)"
    fi
    temporary=$(mktemp -d)
    new=
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if [ -z "$docopt" ]; then
        download "$BUNDLE" ||
            fail "cannot download docopt: $(sed -n 's/^ERROR: //p' "$temporary/errors" | tail -n 1) (without a network, install it as a package; on Debian: apt install python3-docopt)"
        docopt=bundled
    fi
    # It is for one command, and is left out where it cannot be had.
    if [ -z "$parser" ] && [ -n "$BUNDLE" ] && python_with ensurepip "$interpreter" >/dev/null &&
        "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &&
        download e2b-dockerfile-utils --retries 0; then
        parser=bundled
    fi

    # All files, in the directory that they are moved from.
    mkdir -p "$root/libexec/plash"
    new=$(mktemp -d "$root/libexec/plash/new.XXXXXX")
    private=$new/libexec/plash
    mkdir -p "$new/bin" "$private" "$new/share/bash-completion/completions" "$new/share/zsh/site-functions" \
        "$new/share/fish/vendor_completions.d"
    cp bin/plash "$new/bin"
    for file in libexec/plash-*; do
        # -S and -E: a fast start, that the caller's environment doesn't change.
        sed "1s|^#!/usr/bin/env python3\$|#!$interpreter -SE|" "$file" >"$private/${file#*/}"
        chmod 755 "$private/${file#*/}"
        ln -s "../libexec/plash/${file#*/}" "$new/bin"
    done
    cp -R plashlib "$private"
    find "$private/plashlib" -name __pycache__ -prune -exec rm -rf {} +
    [ ! -d "$temporary/bundle" ] || cp -R "$temporary/bundle"/. "$private"
    [ "$docopt" != "bundled already" ] || cp -R "$root"/libexec/plash/docopt* "$private"
    [ "$parser" != "bundled already" ] || cp -R "$root"/libexec/plash/e2b_dockerfile_utils* "$private"
    "$interpreter" -W ignore -m compileall -q -s "$new" -p "$PREFIX" "$private" >/dev/null
    cp completions/plash.bash "$new/share/bash-completion/completions/plash"
    cp completions/_plash "$new/share/zsh/site-functions"
    cp completions/plash.fish "$new/share/fish/vendor_completions.d"
    mkdir -p "$new/share/doc/plash/docs"
    cp README.md CHANGELOG.md "$new/share/doc/plash"
    cp docs/*.md docs/*.svg "$new/share/doc/plash/docs"
    pages="with man pages"
    if docutils=$(python_with docutils "$interpreter" .venv/bin/python); then
        "$docutils" man/generate.py "$new/share/man/man1"
    else
        pages="without man pages (docutils, which makes them, is missing: \`make .venv/ready\` gets it, or apt install python3-docutils)"
    fi
    (cd "$new" && find . ! -type d | sed 's|^\./||' && echo libexec/plash/installed) >"$temporary/installed"
    cp "$temporary/installed" "$private/installed"
    chmod -R u+w,go-w,a+rX "$new"

    # From here on, names change and nothing else.
    trap '' INT TERM HUP
    installed >"$temporary/before"
    while IFS= read -r path; do
        mkdir -p "$root/${path%/*}"
        mv -f "$new/$path" "$root/$path"
    done <"$temporary/installed"
    grep -vxFf "$temporary/installed" "$temporary/before" | while IFS= read -r path; do rm -f "$root/$path"; done

    echo "installed plash $version below $root: bin/plash, bin/plash-*, libexec/plash, share; $pages"
    echo "the interpreter is $interpreter; docopt is $docopt"
    [ -z "$BUNDLE" ] ||
        echo "e2b-dockerfile-utils, for build:file, is ${parser:-missing (Python 3.11 and pip install e2b-dockerfile-utils get it)}"
    case :$PATH:${DESTDIR:+:$PREFIX/bin:} in
        *:"$PREFIX/bin":*) ;;
        *) echo "$PREFIX/bin is not on PATH: export PATH=\"$PREFIX/bin:\$PATH\" puts it there" ;;
    esac
}

action=${1:-install}
case $action in
    install | uninstall) target=$action ;;
    apparmor) target=install-apparmor ;;
    *) echo "usage: install.sh [uninstall | apparmor]" >&2 && exit 2 ;;
esac
cd -- "$(dirname -- "$0")"
PREFIX=${PREFIX:-/usr/local} PYTHON=${PYTHON:-python3} BUNDLE=${BUNDLE-docopt}
# Shells other than bash leave the ~ in `make PREFIX=~/.local` as it is.
# shellcheck disable=SC2088
case $PREFIX in
    "~" | "~/"*) PREFIX=$HOME${PREFIX#"~"} ;;
    "~"*) fail "PREFIX has to be a path: $PREFIX" ;;
    /*) ;;
    *) PREFIX=$PWD/$PREFIX ;;
esac
PREFIX=${PREFIX%/}
root=${DESTDIR-}$PREFIX
profile=${DESTDIR-}/etc/apparmor.d/plash
# AppArmor goes by the paths of commands without symbolic links.
libexec=$(realpath -m ${DESTDIR:+-s} "$PREFIX/libexec/plash")
"$action"
