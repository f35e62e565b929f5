#!/bin/sh
# Makes the base image of the Dockerfiles from Debian's packages, for an engine that cannot pull it. As root:
#
#     docker/base-image.sh [TAG]
#
# It takes debootstrap, two minutes and 200 MB. What it makes has Debian's own Python 3.11 and nothing of this machine.
set -eu
tag=${1:-python:3.11-slim-bookworm}
if docker image inspect "$tag" > /dev/null 2>&1; then
    echo "$tag is there already."
    exit 0
fi
command -v debootstrap > /dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf --one-file-system "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$folder"
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/* "$folder"/usr/share/doc/*
tar -C "$folder" -c . | docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    -c 'CMD ["python3"]' - "$tag" > /dev/null
echo "made $tag"
