#!/bin/bash
# Keep a run's copy in a bucket, and fetch it from there onto a new machine.
#
#     keep.sh save  RUN BUCKET      copy what is new; again and again while the run trains
#     keep.sh fetch RUN BUCKET      bring the copy, before training begins
#
# BUCKET is a folder: an object store that is mounted, and that may know neither rename nor append.
# So every file is written there whole, and what says that others are there is written after them:
# of a checkpoint its manifest, of the run the summary that marks it as finished. Whether a
# checkpoint is as it was written, Strata finds out by its sums.
set -eu
what=$1 run=$2 bucket=$3

checkpoints() { # of a folder, by name, oldest first
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

copy() { # FROM TO
    local steps
    steps=$(checkpoints "$1") # before the log is copied, which thus reaches as far as they do
    mkdir -p "$2"
    find "$1" -maxdepth 1 -type f ! -name '.*' ! -name 'writer.*' ! -name summary.json \
        -exec cp -t "$2" {} +
    for step in $steps; do
        copy_checkpoint "$1" "$2" "$step"
    done
    [ ! -f "$1/summary.json" ] || cp "$1/summary.json" "$2/"
}

mkdir -p "$(dirname "$run")" "$bucket"
exec 9>"$run.lock"
flock 9 # one copy at a time
case $what in
save)
    copy "$run" "$bucket"
    if [ "$(checkpoints "$run")" ]; then # what the run no longer keeps
        for step in $(checkpoints "$bucket"); do
            [ -d "$run/checkpoints/$step" ] || rm -rf "${bucket:?}/checkpoints/$step"
        done
    fi
    ;;
fetch)
    [ ! -d "$run" ] || exit 0 # started again on the same machine: what is here is newer
    rm -rf "$run.fetched"
    copy "$bucket" "$run.fetched"
    mv "$run.fetched" "$run"
    ;;
*)
    echo "keep.sh: save or fetch, not $what" >&2
    exit 2
    ;;
esac
