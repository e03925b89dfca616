#!/bin/sh -eu
# The main job, in a data directory of its own: import, build a layer, run in it.

cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
PLASH_DATA=$(mktemp -d)
export PLASH_DATA
trap 'plash sudo rm -rf "$PLASH_DATA"' EXIT

while read -r line; do
    printf '\n$ %s\n' "$line"
    eval "${line%%  #*}"
done <<'END'
id=$(plash pull:host)    # an image of this host's own sh, ls, grep and such
id=$(plash build $id 'mkdir /app; echo hello from a layer > /app/greeting')
plash run $id cat /app/greeting
plash run $id sh -c 'id -u; rm -r /app'    # root inside is you, and what a run changes is dropped
plash run $id cat /app/greeting
plash push:tarfile $id - | tar -tf - | grep app
END
