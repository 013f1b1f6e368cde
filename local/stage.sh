# Sourced by every egs/<corpus>/run.sh: options, environment, and the running of stages.
# A run.sh sets `corpus`, `experiments` and the other variables that differ (mini_experiments, mini_conf, extras), and calls `run_recipe "$@"`.

# After so few updates the teacher finds no words in unlabelled audio: students are given transcripts as well.
rehearse_settings=(optim.updates=12 optim.epochs=0 data.valid_utterances=4 data.max_duration=12 "data.train=[labelled,unlabelled]"
  saving.every_updates=4 lm.optim.updates=4 lm.optim.epochs=0 lm.rescoring.nbest=5 lm.rescoring.beam=4)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/local/environment.sh"
known_options="--stage --stop-stage --data-dir --exp-dir --conf-dir --corpus-dir --experiment --nj --device --engine --units \
--topology --mini --rehearse --download --unlabelled --allow-commands --resample --hlg --set --launcher --job --help"

fail() {
  echo "run.sh: $*" >&2
  exit 2
}

# The known option with the least edit distance to $1.
nearest_option() {
  tr ' ' '\n' <<<"$known_options" | awk -v word="$1" '
    function least(a, b) { return a < b ? a : b }
    function distance(s, t,   i, j, d) {
      for (i = 0; i <= length(s); i++) d[i, 0] = i
      for (j = 0; j <= length(t); j++) d[0, j] = j
      for (i = 1; i <= length(s); i++)
        for (j = 1; j <= length(t); j++)
          d[i, j] = least(least(d[i-1, j], d[i, j-1]) + 1, d[i-1, j-1] + (substr(s, i, 1) != substr(t, j, 1)))
      return d[length(s), length(t)]
    }
    { n = distance(word, $1); if (best == "" || n < smallest) { best = $1; smallest = n } }
    END { print best }'
}

usage() {
  cat <<END
usage: egs/$corpus/run.sh [options]
  --stage N, --stop-stage M   first and last stage to run (0 to 13)
  --mini true                 the small version on an embedded corpus (librispeech)
  --rehearse true             every stage in minutes, on a handful of sentences: does it run?
  --experiment NAME[,NAME…]   experiments of stages 5 to 12 (default: $experiments)
  --data-dir, --exp-dir       where everything is written (default: beside this script)
  --conf-dir DIR              experiments' YAML files (default: conf beside this script)
  --corpus-dir DIR            where the corpus lies
  --download false            only locate the corpus; by default what it lacks is fetched into its folder
  --unlabelled PART[,PART…]   parts of the corpus to use as unlabelled audio, in place of the usual ones
  --nj N                      processes and threads (default: all cores); on a CPU, training is N processes
  --launcher COMMAND          starts the processes of stages 5 to 11: "torchrun --nproc-per-node 8"
  --job J/N                   of N calls that share stages 0, 1, 5 (units of frames), 7 or 10 the J-th: does its share,
                              and leaves the rest and the stage's completion to the same call without --job
  --resample true             convert audio of other sampling rates to 16 kHz (default: left out and listed)
  --allow-commands true       run the commands in wav.scp and cuts in place of audio files
  --device cpu|cuda           where models run
  --engine native             graph engine: native, torch (the slow reference), k2 (where it is installed)
  --units phones              output units: phones, chars, bpe, biphones (tied by counts), letters (of a fine-tuned teacher)
  --topology NAME             ctc (default), ctc_compact, two_pdf
  --hlg FILE                  decode with this HLG (OpenFst .fst, k2 or icefall .pt), not the recipe's; needs stage 4
  --set KEY=VALUE             override a setting of the experiments, of the graphs (graphs.KEY=VALUE)
                              or of the Transformer LM (lm.KEY=VALUE); may be repeated
  -h, --help                  show this
END
}

# whole_number OPTION VALUE LEAST MOST: ends with a message for another value; 08 and 010 are none, being octal to some.
whole_number() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && (($2 >= $3 && $2 <= $4)) ||
    fail "$1 must be a whole number from $3 to $4, without leading zeros (got '$2')"
}

parse_options() {
  stage=0 stop_stage=13 data_dir="" exp_dir="" conf_dir="" corpus_dir="" experiment="" device=cpu engine=native
  units=phones topology=ctc mini=false rehearse=false allow_commands=false resample=false hlg="" download=true unlabelled="" launcher="" job="" settings=()
  nj=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # those would be counted in place of the cores
  local given="" option
  while (($#)); do
    [[ $1 == -h || $1 == --help ]] && { usage; exit 0; }
    [[ $1 =~ ^--[a-z-]+$ && " $known_options " == *" $1 "* ]] || fail "unknown option '$1'; did you mean '$(nearest_option "$1")'? (--help lists all)"
    [[ $# -gt 1 && $2 =~ [^[:space:]] && $2 != -* ]] || fail "option $1 needs a value (got '${2-}')"
    if [[ $1 == --set ]]; then
      settings+=("$2")
    else
      [[ "$given " != *" $1 "* ]] || fail "option $1 is given twice"
      given+=" $1"
      local name=${1#--}
      printf -v "${name//-/_}" '%s' "$2"
    fi
    shift 2
  done
  whole_number --stage "$stage" 0 13
  whole_number --stop-stage "$stop_stage" 0 13
  whole_number --nj "$nj" 1 4096
  ((stage <= stop_stage)) || fail "--stage $stage must not be greater than --stop-stage $stop_stage"
  for option in mini rehearse download allow_commands resample; do
    [[ ${!option} == true || ${!option} == false ]] || fail "--${option/_/-} must be true or false (got '${!option}')"
  done
}

# begin "$@": options, folders, environment.
begin() {
  parse_options "$@"
  local recipe_dir="$root/egs/$corpus" kind="" conf=conf
  if [[ $mini == true || $rehearse == true ]] && [[ -d $recipe_dir/${mini_conf:=conf/mini} ]]; then
    conf=$mini_conf experiments=${mini_experiments:-$experiments}
  fi
  : "${conf_dir:=$recipe_dir/$conf}"
  [[ $mini == true ]] && kind=-mini
  [[ $rehearse == true ]] && kind=-rehearse && settings=("${rehearse_settings[@]}" "${settings[@]}")
  : "${data_dir:=$recipe_dir/data$kind}" "${exp_dir:=$recipe_dir/exp$kind}"
  : "${experiment:=$experiments}"
  common=(--corpus "$corpus" --conf-dir "$conf_dir" --data-dir "$data_dir" --exp-dir "$exp_dir"
    --corpus-dir "$corpus_dir" --experiment "$experiment" --nj "$nj" --device "$device" --engine "$engine"
    --units "$units" --topology "$topology" --mini "$mini" --rehearse "$rehearse" --launcher "$launcher"
    --allow-commands "$allow_commands" --resample "$resample" --hlg "$hlg" --download "$download" --unlabelled "$unlabelled" --job "$job")
  local setting
  for setting in "${settings[@]}"; do common+=(--set "$setting"); done
  # Waiting threads spin for less than a millisecond, then sleep: to sleep at once takes a quarter of the speed of
  # training on quiet cores, to spin for ever makes it many times slower where a core is busy.
  export OMP_NUM_THREADS="$nj" GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-200000}"
  RECIPE_COMMAND="egs/$corpus/run.sh$( (($# == 0)) || printf ' %q' "$@")"
  export RECIPE_COMMAND # what results name as the command that made them
  # Some thirty processes import the same modules: one of them compiles each, instead of all (4 s each time).
  unset PYTHONDONTWRITEBYTECODE
  timings=() started=$SECONDS
  trap 'stop 130 TERM interrupted' INT
  trap 'stop 143 TERM stopped' TERM
  trap 'stop 129 TERM stopped' HUP
  trap 'stop 75 USR1 "stopped before the time limit"' USR1 # EX_TEMPFAIL: the batch script may requeue itself
  install_environment "synth,deploy,report,hub${extras:+,$extras}"
  "$root/.venv/bin/python" "$root/local/check_call.py" "${common[@]}" --stage "$stage" --stop-stage "$stop_stage"
}

# stop STATUS SIGNAL HOW: ends what runs, which may write a checkpoint first, and then this script; a second signal kills.
# By `jobs`, as a signal may come before the process that has just been started is in any variable.
stop() {
  trap 'kill -KILL $(jobs -rp) 2>/dev/null' INT TERM HUP
  trap '' USR1
  kill -"$2" $(jobs -rp) 2>/dev/null || true
  while [[ -n $(jobs -rp) ]]; do wait || true; done
  echo "run.sh: $3; the same command continues where it stopped" >&2
  exit "$1"
}

# run N "title" script [arguments]: a stage, if it lies between --stage and --stop-stage.
run() {
  local number=$1 title=$2 script=$3 begun=$SECONDS
  shift 3
  ((number >= stage && number <= stop_stage)) || return 0
  echo "== stage $number: $title"
  # In the background, as bash handles no signal while it waits for a command in the foreground.
  "$root/.venv/bin/python" "$root/local/$script" "${common[@]}" "$@" &
  wait $!
  timings+=("$(printf '%5d s  stage %d: %s' $((SECONDS - begun)) "$number" "$title")")
}

# run_recipe "$@": every stage from --stage to --stop-stage, then their times.
run_recipe() {
  begin "$@"
  run 0 "corpus, manifests, cut sets" prepare_corpus.py
  run 1 "Fbank features" compute_fbank.py
  run 2 "lexicon and units" prepare_lang.py
  run 3 "n-gram language models" train_ngrams.py
  run 4 "denominator and decoding graph" compile_graphs.py
  run 5 "teacher's first weights, pre-training" train.py --stage 5
  run 6 "teacher, LF-MMI on the labelled part" train.py --stage 6
  run 7 "teacher's numerators for the unlabelled part" label_unlabelled.py
  run 8 "students, first step (T -> SN)" train.py --stage 8
  run 9 "students, second step (SN -> SS) and fine-tuning" train.py --stage 9
  run 10 "decoding" decode.py
  run 11 "Transformer LM and rescoring" rescore.py
  run 12 "export, real-time factor and latency" export.py
  run 13 "report" report.py
  echo "== time"
  printf '%s\n' "${timings[@]}"
  printf '%5d s  in all\n' $((SECONDS - started))
}
