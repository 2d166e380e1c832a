#!/usr/bin/env bash
# Stands in for Slurm, under the names of its programs: a queue in $FAKE_SLURM, whose tasks are processes of this machine. A
# file JOB_TASK.told there has what is told of that task instead of how it ended, `accounts` has sacct answer.
queue=$FAKE_SLURM
case ${0##*/} in
sbatch)
  [ "$1" = --version ] && echo "slurm 22.05.8" && exit
  [ -e "$queue/closed" ] && echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2 && exit 1
  echo "$*" >>"$queue/submitted"
  for argument in "$@"; do
    case $argument in
    --array=0-*) last=${argument#--array=0-} ;;
    --output=*) output=${argument#--output=} ;;
    --job-name=*) name=${argument#--job-name=} ;;
    esac
  done
  job=$(wc -l <"$queue/submitted")
  echo "$name" >"$queue/$job.name"
  for task in $(seq 0 "$last"); do
    echo RUNNING >"$queue/${job}_$task"
    # What the task leaves behind is what Slurm tells of it.
    SLURM_ARRAY_TASK_ID=$task setsid bash -c '
      echo $$ >"$2.pid"
      # What cancels the task ends all of its processes but the one that tells of it.
      trap : TERM
      sh "$1" &
      # A wait that the signal cuts short is begun again. It comes first: a process that has ended already is not there for kill.
      while wait $!; code=$?; kill -0 $! 2>/dev/null; do :; done
      if [ $code -gt 128 ]; then told="FAILED 0:$((code - 128))"; elif [ $code = 0 ]; then told="COMPLETED 0:0"; else told="FAILED $code:0"; fi
      [ -e "$2.told" ] && told=$(cat "$2.told")
      echo "$told" >"$2.new" && mv "$2.new" "$2"
    ' - "${!#}" "$queue/${job}_$task" >"${output/\%a/$task}" 2>&1 &
  done
  echo "$job"
  ;;
squeue)
  [ -e "$queue/down" ] && echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2 && exit 1
  for task in "$queue"/*_*; do
    case ${task##*/} in *.*) continue ;; esac
    job=${task##*/}
    read -r state _ <"$task" && echo "$(cat "$queue/${job%_*}.name")|${job%_*}|${job#*_}|${state%_by_*}"
  done
  true
  ;;
scontrol)
  read -r state code <"$queue/$4" && echo "JobId=$4 JobState=$state Reason=None ExitCode=$code"
  ;;
sacct)
  [ -e "$queue/accounts" ] || { echo "Slurm accounting storage is disabled" >&2; exit 1; }
  job=${!#}
  read -r state code <"$queue/${job#--jobs=}" && echo "${state/_by_/ by }|$code"
  ;;
scancel)
  echo "CANCELLED_by_0 0:15" >"$queue/$1.told"
  kill -TERM -- "-$(cat "$queue/$1.pid")"
  ;;
esac
