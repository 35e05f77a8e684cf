#!/bin/sh
# Called in the build only: install into the image's environment what the arguments name (a wheel, or -r a set of the
# lock, which is whole: nothing is resolved), and compile it, since the image's root can't be written later.
set -eu
if [ -e /run/secrets/fetch ]; then . /run/secrets/fetch; fi
hashes=""
if [ "$1" = "-r" ]; then hashes="--require-hashes"; fi
export UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv
exec /opt/build/bin/uv pip install -q --python /opt/podium/bin/python --no-deps $hashes --compile-bytecode "$@"
