# Sourced by the batch scripts.

# run_or_requeue COMMAND…: runs it and passes signals on; where it ends with status 75 (EX_TEMPFAIL: stopped by Slurm's
# SIGUSR1 before the time limit, all work stored), the Slurm job is queued again and continues.
run_or_requeue() {
  local child status=0 signal
  "$@" &
  child=$!
  for signal in USR1 TERM; do trap "kill -$signal $child 2>/dev/null || true" "$signal"; done
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends a wait, not the command
  wait "$child" || status=$?
  ((status != 75)) || scontrol requeue "$SLURM_JOB_ID"
  exit "$status"
}
