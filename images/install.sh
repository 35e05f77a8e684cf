#!/bin/sh
# Called in the build only: install into the image's environment what the arguments name (a wheel, or -r sets of the
# lock, which are whole: nothing is resolved), and compile it, since the image's root can't be written later.
set -eu
if [ -e /run/secrets/fetch ]; then . /run/secrets/fetch; fi
export UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv
# The sets come through the cache that is mounted then; a wheel of ours would leave one in the image.
if [ "$1" = "-r" ]; then kept="--require-hashes"; else kept="--no-cache"; fi
exec /opt/build/bin/uv pip install -q --python /opt/podium/bin/python --no-deps $kept --compile-bytecode "$@"
