#!/usr/bin/env bash
# A base image where no registry can be reached: Debian 12 with its Python 3.11, made with debootstrap (as root).
#
#   images/debian-python.sh [TAG]        default tag: podium/debian-python:bookworm
#
# DOCKER    the engine's command (docker); `docker -H unix:///…` for a daemon of its own
# MIRROR    where the packages come from, by default this machine's own; it is left out of the image
set -euo pipefail
tag="${1:-podium/debian-python:bookworm}"
read -r -a docker <<< "${DOCKER:-docker}"

mirror="${MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | grep -oEm1 '^[^#]*https?://[^ ]+' | grep -oE 'https?://.*')}"
[ -n "$mirror" ] || { echo "images: say where Debian's packages come from: MIRROR=https://…/debian" >&2; exit 2; }

root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
# libpython3-dev: the headers that torch.compile needs; official Python images have theirs too. No compiler.
debootstrap --variant=minbase --include=python3,python3-venv,libpython3-dev,ca-certificates \
    bookworm "$root" "$mirror" > "$root.log" 2>&1 \
    || { cat "$root.log" >&2; exit 1; }
rm -f "$root.log"

: > "$root/etc/apt/sources.list"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/debootstrap \
    "$root"/usr/share/{doc,man,locale,info}/*
tar -C "$root" --numeric-owner -c . | "${docker[@]}" import --change 'CMD ["python3"]' - "$tag" > /dev/null
echo "images: $tag made"
