#!/usr/bin/env bash
# All checks of p4lm, on the CPU: format, lint, layers of imports, tests.
#
#   bash launch/test.sh [arguments of pytest]
#
#   P4LM_VENV=DIR     environment to make or use (default: the active one, else
#                     .venv-test); P4LM_PYTHON names the interpreter for it
#   P4LM_PARITY=1     also install the reference implementations (PyTorch,
#                     Transformers, implicit, irspack, ir-measures) that the
#                     parity tests compare with; they skip without
#   P4LM_WORKERS=N    test processes (default: one a core, at most 4)
#   P4LM_DATA=DIR     real data; tests that need it skip without
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

venv=${P4LM_VENV:-${VIRTUAL_ENV:-$P4LM_ROOT/.venv-test}}
make_environment "$venv"
install_p4lm "$venv" '[convert,launch,test]'
keep_bytecode "$venv"

# install_references: the versions that the parity tests were written against.
# pip and not uv: only pip takes a CPU build of PyTorch from the places that
# its settings name.
install_references() {
  local python=$venv/bin/python
  if "$python" -c \
    'import implicit, ir_measures, irspack, torch, transformers' 2>/dev/null; then
    return
  fi
  note 'Installing the reference implementations'
  timeout 600 "$python" -m pip install -qq --disable-pip-version-check \
    -c "$P4LM_ROOT/launch/constraints.txt" torch==2.13.0 transformers==4.57.1 \
    implicit==0.7.3 irspack==0.5.2 ir-measures==0.4.3
}

if [[ ${P4LM_PARITY:-0} == 1 ]]; then
  install_references ||
    note 'They cannot be had here: the parity tests will be skipped'
fi

failed=()
# check NAME COMMAND...: runs all checks even when one fails.
check() {
  note "$1"
  "${@:2}" || failed+=("$1")
}

cd "$P4LM_ROOT"
workers=${P4LM_WORKERS:-$(($(nproc) < 4 ? $(nproc) : 4))}
check 'format (mend with: ruff format .)' "$venv/bin/ruff" format --check .
check 'lint' "$venv/bin/ruff" check .
check 'layers of imports' "$venv/bin/lint-imports" --no-cache
check 'tests' "$venv/bin/python" -m pytest --numprocesses="$workers" \
  --dist=loadfile --durations=15 "$@"

if ((${#failed[@]})); then
  printf 'error: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
note 'All checks passed'
