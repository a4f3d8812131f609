#!/usr/bin/env bash
# Trains a small SigLIP-style dual encoder on the built-in dataset, on the CPU in about five minutes, and shows
# what it has learned: held-out zero-shot accuracy and retrieval, beside chance and a colour histogram.
#
#   bash launch/demo.sh [WORKDIR]       default: runs/demo; a run that was interrupted goes on
set -euo pipefail
cd "$(dirname "$0")/.."

source launch/environment.sh
environment .venv
export JAX_PLATFORMS=cpu
workdir=${1:-runs/demo}
python -m mmjax data --build=scenes
python -m mmjax train --config=contrastive/siglip:demo --workdir="$workdir"
python -m launch.demo "$workdir"
