#!/usr/bin/env bash
# A base image where no registry can be reached: Debian 12 with its Python 3.11, made with debootstrap (as root).
#
#   images/debian-python.sh [TAG]        default tag: podium/debian-python:bookworm
#
# DOCKER    the engine's command (docker); `docker -H unix:///…` for a daemon of its own
# MIRROR    where the packages come from; it is left out of the image
set -euo pipefail
tag="${1:-podium/debian-python:bookworm}"
read -r -a docker <<< "${DOCKER:-docker}"

root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
# libpython3-dev: the headers that torch.compile needs; official Python images have theirs too. No compiler.
debootstrap --variant=minbase --include=python3,python3-venv,libpython3-dev,ca-certificates \
    bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}" > "$root.log" 2>&1 \
    || { cat "$root.log" >&2; exit 1; }
rm -f "$root.log"

echo "deb http://deb.debian.org/debian bookworm main" > "$root/etc/apt/sources.list"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/debootstrap \
    "$root"/usr/share/{doc,man,locale,info}/*
tar -C "$root" --numeric-owner -c . | "${docker[@]}" import --change 'CMD ["python3"]' - "$tag" > /dev/null
echo "images: $tag made"
