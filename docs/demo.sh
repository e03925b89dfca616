#!/bin/sh -eu
# The main job in a minute, in a data directory of its own: import, build a layer, run in it.

cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
PLASH_DATA=$(mktemp -d)
export PLASH_DATA
trap 'plash purge --yes 2>/dev/null || plash sudo rm -rf "$PLASH_DATA"' EXIT

show() {
    printf '\n$ %s\n' "$*"
}

show 'id=$(plash pull:host)              # an image made of this host'\''s own sh, ls, grep ...'
id=$(plash pull:host)
echo "$id"

show 'id=$(plash build $id "mkdir /app; echo hello from a layer > /app/greeting")'
id=$(plash build "$id" 'mkdir /app; echo hello from a layer > /app/greeting')
echo "$id"

show 'plash run $id cat /app/greeting'
plash run "$id" cat /app/greeting

show 'plash run $id sh -c "id; rm -rf /app"    # what a run changes is dropped ...'
plash run "$id" sh -c 'id; rm -rf /app'

show 'plash run $id cat /app/greeting    # ... so this is still there'
plash run "$id" cat /app/greeting

show 'plash push:tarfile $id - | tar -tf - | wc -l'
plash push:tarfile "$id" - | tar -tf - | wc -l
