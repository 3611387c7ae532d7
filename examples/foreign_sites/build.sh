#!/bin/bash
# Build a corpus of datasets whose makers nobody knows: without network, rights, or anything of this machine but three
# mounts. Sites, out (an empty folder of your own) and the file of the key, then settings of the builder:
#   examples/foreign_sites/build.sh /data/foreign /data/corpus ~/keys/subject.key max_quarantined=20%
# The image is that of the Containerfile beside. Atlases by name must be in the image or a mount: nothing is downloaded.
set -euo pipefail
sites=$(realpath "$1") out=$(realpath "$2") key=$(realpath "$3")
shift 3
exec "${CONTAINER_TOOL:-docker}" run --rm \
  --network none --read-only --cap-drop ALL --security-opt no-new-privileges \
  --user "$(id -u):$(id -g)" --pids-limit 4096 --memory "${MEMORY:-64g}" \
  --tmpfs /tmp:rw,nosuid,nodev,noexec,size=16g --shm-size "${SHM:-8g}" \
  --mount type=bind,src="$sites",dst=/sites,readonly \
  --mount type=bind,src="$key",dst=/key,readonly \
  --mount type=bind,src="$out",dst=/out \
  "${IMAGE:-mcsp-builder}" bids_root=/sites out_dir=/out/corpus subject_key_file=/key "$@"
