#!/usr/bin/env bash
# Writes launch/constraints.txt anew: the newest versions that fit setup.py on
# Linux with Python 3.11 to 3.13. Needs uv and the package index.
#
#   bash launch/lock.sh             # keeps pinned versions that still fit
#   bash launch/lock.sh --upgrade   # takes the newest ones
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock=launch/constraints.txt
new=$(mktemp)
with_references=$(mktemp)
trap 'rm -f "$new" "$with_references"' EXIT
if [[ -f $lock ]]; then cp "$lock" "$new" && cp "$lock" "$with_references"; fi

# One version of each package for all three Pythons (--fork-strategy fewest):
# what the tests saw on one is then what runs on the others.
resolve() {
  uv pip compile setup.py --universal --python-version 3.11 \
    --fork-strategy fewest --extra convert --extra launch --extra test \
    --no-annotate --no-header --quiet "$@"
}

# The libraries that p4lm is compared with are large and are not pinned, but
# they must find versions beside those that are.
resolve --extra parity --extra bench --output-file "$with_references" "$@"
resolve --constraint "$with_references" --output-file "$new" "$@"

{
  echo '# Versions that p4lm is tested with: Linux, Python 3.11 to 3.13, and the'
  echo '# extras convert, launch and test. Use as: pip install -c THIS_FILE .'
  echo '# Written by launch/lock.sh; edit setup.py and run that instead.'
  # Every package has one version, so the markers (which only repeat the
  # Python and platform of the lock) are dropped.
  grep -v '^#' "$new" | sed 's/ *;.*//'
} > "$new.txt"
mv "$new.txt" "$lock"
echo "Wrote $lock: $(grep -vc '^#' "$lock") packages."
