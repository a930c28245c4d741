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
trap 'rm -f "$new"' EXIT
if [[ -f $lock ]]; then cp "$lock" "$new"; fi

# One version of each package for all three Pythons (--fork-strategy fewest):
# what the tests saw on one is then what runs on the others.
uv pip compile setup.py --universal --python-version 3.11 \
  --fork-strategy fewest --extra convert --extra launch --extra test \
  --no-annotate --no-header --output-file "$new" --quiet "$@"

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
