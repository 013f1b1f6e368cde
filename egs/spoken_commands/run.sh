#!/usr/bin/env bash
# Spoken commands: real speech of many speakers, digit strings and coffee orders; minutes on a CPU.
# The corpus is given as --corpus-dir, or lies in data/corpus: see README.md beside this script.
set -euo pipefail
corpus=spoken_commands
experiments=teacher,sn,ss,single
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
