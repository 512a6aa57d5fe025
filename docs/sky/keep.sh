#!/bin/bash
# Keep a run's copy in a bucket, and fetch it from there.
#
#     keep.sh save  RUN BUCKET      copy what is new; run again and again while the run trains
#     keep.sh fetch RUN BUCKET      bring the copy back before training begins
#
# BUCKET is a folder: an object store that is mounted and that may know neither rename nor append.
# So every file is written there once, whole; a checkpoint's manifest goes last and says that the
# checkpoint is there; its sums, which Strata checks, say whether it is as it was.
set -eu
what=$1 run=$2 bucket=$3

# Strata writes checkpoints under hidden names and renames them, so those that match are complete.
checkpoints() {
    find "$1/checkpoints" -mindepth 2 -maxdepth 2 -path '*/step-*/manifest.json' 2>/dev/null |
        sort | while read -r manifest; do basename "$(dirname "$manifest")"; done
}

copy_checkpoint() { # FROM TO STEP
    local from=$1/checkpoints/$3 to=$2/checkpoints/$3
    cmp -s "$from/manifest.json" "$to/manifest.json" && return
    rm -rf "$to"
    mkdir -p "$to"
    find "$from" -type f ! -name manifest.json -exec cp -t "$to" {} +
    cp "$from/manifest.json" "$to/"
}

copy_rest() { # FROM TO
    find "$1" -maxdepth 1 -type f ! -name '.*' -exec cp -t "$2" {} +
}

mkdir -p "$run" "$bucket"
exec 9>"$run/.keep"
flock 9 # one copy at a time
case $what in
save)
    steps=$(checkpoints "$run") # before the log is copied, which thereby reaches as far as they do
    copy_rest "$run" "$bucket"
    for step in $steps; do
        copy_checkpoint "$run" "$bucket" "$step"
    done
    if [ "$steps" ]; then # what the run no longer keeps
        for step in $(checkpoints "$bucket"); do
            [ -d "$run/checkpoints/$step" ] || rm -rf "${bucket:?}/checkpoints/$step"
        done
    fi
    ;;
fetch)
    copy_rest "$bucket" "$run"
    for step in $(checkpoints "$bucket"); do
        copy_checkpoint "$bucket" "$run" "$step"
    done
    ;;
*)
    echo "keep.sh: save or fetch, not $what" >&2
    exit 2
    ;;
esac
