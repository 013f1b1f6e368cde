#!/usr/bin/env bash
# Recognise recordings with the small streaming model of this repository.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model="$root/egs/spoken_commands/model"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<END
usage: tools/try.sh [RECORDING…]    recognise recordings, or without any the order beside the model
       tools/try.sh --microphone    until Ctrl-C
Words appear as they are recognised, at the speed of speech. The model's vocabulary:
$(awk '$2 > 0 && !/^[#<]/ { print $1 }' "$model/words.txt" | paste -sd ' ' | fold -s -w 100 | sed 's/^/  /')
END
  exit 0
fi
source "$root/local/environment.sh"
install_environment deploy
(($#)) || set -- "$model/order.flac"
exec "$root/.venv/bin/python" "$root/tools/transcribe.py" --experiment "$model" --runtime int8 --partial --real-time \
  --resample "$@"
