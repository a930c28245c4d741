# Sourced by quickstart.sh and test.sh: a virtual environment with p4lm in it.
# Needs a Linux machine with Python 3.11 to 3.13 and the package index.
#
#   P4LM_PYTHON   interpreter to build the environment with
#   P4LM_ROOT     set here: the checkout

P4LM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
P4LM_STARTED=$SECONDS

# note MESSAGE...: a line of progress with the time since the start.
note() {
  local secs=$((SECONDS - P4LM_STARTED))
  printf '[%d:%02d] %s\n' $((secs / 60)) $((secs % 60)) "$*"
}

# fail MESSAGE...: says what is wrong and how to mend it, and stops.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# is_suitable PYTHON: it runs, and its version is one that p4lm supports. A
# command may exist and still not run (the shims of version managers).
is_suitable() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
    >/dev/null 2>&1
}

# find_python: prints the interpreter to use.
find_python() {
  local candidate without_venv=
  if [[ -n ${P4LM_PYTHON:-} ]]; then
    is_suitable "$P4LM_PYTHON" ||
      fail "P4LM_PYTHON=$P4LM_PYTHON is no Python 3.11, 3.12 or 3.13"
    echo "$P4LM_PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3 python \
    /usr/local/bin/python3 "$HOME"/.pyenv/versions/3.1[123]*/bin/python; do
    if is_suitable "$candidate"; then
      # Debian keeps what `python -m venv` needs in a package of its own.
      if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$candidate"
        return
      fi
      without_venv=${without_venv:-$candidate}
    fi
  done
  if [[ -n $without_venv ]]; then
    fail "$without_venv cannot make virtual environments: install its venv" \
      'module (Debian and Ubuntu: apt-get install python3-venv), or name' \
      'another interpreter: P4LM_PYTHON=/path/to/python'
  fi
  fail 'p4lm needs Python 3.11, 3.12 or 3.13, and none was found. Install one' \
    '(Debian and Ubuntu: apt-get install python3 python3-venv), or name one:' \
    'P4LM_PYTHON=/path/to/python'
}

# make_environment DIR: a virtual environment there, or the one that is there.
make_environment() {
  local dir=$1 python
  if [[ -x $dir/bin/python ]] && is_suitable "$dir/bin/python"; then
    return
  fi
  if [[ -e $dir && ! -f $dir/pyvenv.cfg && -n $(ls -A "$dir") ]]; then
    fail "$dir is in the way: it is no virtual environment with Python 3.11" \
      'to 3.13; remove it or name another directory'
  fi
  python=$(find_python) || exit 1
  note "Making the environment $dir ($("$python" --version))"
  "$python" -m venv --clear "$dir" >"$dir.log" 2>&1 || {
    cat "$dir.log" >&2
    rm -f "$dir.log"
    fail "$python could not make the environment $dir (message above)"
  }
  rm -f "$dir.log"
}

# keep_bytecode VENV: nineteen jobs and hundreds of tests start in it; where
# bytecode is not to be written beside sources, it goes into the environment.
keep_bytecode() {
  if [[ -n ${PYTHONDONTWRITEBYTECODE:-} ]]; then
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPYCACHEPREFIX=${PYTHONPYCACHEPREFIX:-$1/bytecode}
  fi
}

# Digest of all that decides what is installed.
_fingerprint() {
  {
    cat "$P4LM_ROOT/setup.py" "$P4LM_ROOT/launch/constraints.txt"
    "$1/bin/python" --version
    echo "$P4LM_ROOT" "${@:2}"
  } | sha256sum | cut -d' ' -f1
}

_no_index() {
  fail 'installing failed (messages above). If they speak of connections,' \
    'check the network; behind a mirror, set PIP_INDEX_URL. Then run the' \
    'same command again: it goes on where it stopped'
}

# _install_with VENV ARGUMENT...: uv where it can be had, else pip. The pip
# that comes with Python 3.11 searches some dependencies for minutes.
_install_with() {
  local venv=$1 index
  shift
  if [[ ! -x $venv/bin/uv ]]; then
    # An environment whose making was interrupted, or that uv made.
    "$venv/bin/python" -c 'import pip' 2>/dev/null ||
      "$venv/bin/python" -m ensurepip >/dev/null
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
      'uv>=0.5' || true
  fi
  if [[ -x $venv/bin/uv ]]; then
    # uv does not read pip's settings; the index is the one that matters.
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get \
      global.index-url 2>/dev/null || true)}
    if [[ -n $index ]]; then
      export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
    fi
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@" ||
      _no_index
  else
    note 'uv cannot be had here: pip is slower'
    "$venv/bin/python" -m pip install --quiet --upgrade pip || _no_index
    "$venv/bin/python" -m pip install --quiet "$@" || _no_index
  fi
}

# install_p4lm VENV EXTRAS: p4lm from this checkout, editable, with the locked
# versions; nothing to do when that was done before. EXTRAS: '' or '[a,b]'.
install_p4lm() {
  local venv=$1 extras=$2 stamp=$1/p4lm-installed want copy
  want=$(_fingerprint "$venv" "$extras")
  if [[ -f $stamp && $(cat "$stamp") == "$want" ]]; then
    return
  fi
  note "Installing p4lm$extras into $venv (about 1 GB to download once)"
  rm -f "$stamp"
  if "$venv/bin/python" -c \
    'import sys; sys.exit(sys.version_info < (3, 13))'; then
    # Built from a copy: a build leaves its own files beside the sources.
    copy=$(mktemp -d)
    cp -r "$P4LM_ROOT/launch/editdistance_pure" "$copy"
    _install_with "$venv" "$copy/editdistance_pure"
    rm -rf "$copy"
  fi
  _install_with "$venv" -c "$P4LM_ROOT/launch/constraints.txt" \
    -e "$P4LM_ROOT$extras"
  echo "$want" >"$stamp"
}
