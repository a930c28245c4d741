#!/usr/bin/env bash
# From nothing to P4LM's table: makes an environment, installs p4lm with locked
# versions and runs every stage on the synthetic world.
#
#   bash launch/quickstart.sh [--venv=DIR] [flags of `p4lm pipeline`]
#
#   --venv=DIR              environment to make or use (default: .venv)
#   --gin.OUTPUT_DIR=DIR    where results go (default: runs/quickstart)
#   --gin_file=FILE         another experiment than experiments/world.gin
#
# Works from any directory. Run again, it goes on where it stopped. Needs Linux,
# Python 3.11 to 3.13 (found, or named by P4LM_PYTHON) and the package index.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

venv=${P4LM_VENV:-$P4LM_ROOT/.venv}
output=
experiment=(--gin_file=experiments/world.gin)
flags=()
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --venv=*) venv=${1#*=} ;;
    --gin.OUTPUT_DIR=*) output=${1#*=} ;;
    --gin_file=*)
      experiment=()
      flags+=("$1")
      ;;
    --gin.*=* | --gin_search_paths=*) flags+=("$1") ;;
    *) fail "unknown argument $1; see: bash launch/quickstart.sh --help" ;;
  esac
  shift
done
output=${output:-$P4LM_ROOT/runs/quickstart}

make_environment "$venv"
install_p4lm "$venv" ''
keep_bytecode "$venv"
note "Running the experiment in $output"
status=0
"$venv/bin/p4lm" pipeline ${experiment[@]+"${experiment[@]}"} \
  --gin.OUTPUT_DIR="$output" ${flags[@]+"${flags[@]}"} || status=$?
if ((status)); then
  fail "the experiment stopped (status $status; message above)." \
    'Run the same command again to go on from the last finished stage'
fi

report=$output/evaluation/report/index.html
[[ -f $report ]] || report='none was written'
note "Done. Report: $report"
