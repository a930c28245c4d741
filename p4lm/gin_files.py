"""Where the gin files are: beside the sources or inside the installed wheel."""

from __future__ import annotations

from pathlib import Path

from p4lm.errors import UserError


def gin_roots() -> list[Path]:
  """Directories that hold `models/`, `runs/` and `experiments/`.

  A wheel carries the files as `p4lm/_gin`; a source checkout (also one that
  was installed with `pip install -e`) has them in `gin/` beside `p4lm/`. They
  are read as files and never imported: a package called `gin` would shadow
  gin-config.

  Returns:
    The existing directories, absolute, in search order; never empty.
  Raises:
    UserError: neither place exists, so the installation is broken.
  """
  package = Path(__file__).resolve().parent
  places = [package / '_gin', package.parent / 'gin']
  # Another project's `gin` may lie beside an installed p4lm (gin-config
  # itself does, in site-packages): ours is known by its run files.
  found = [place for place in places if (place / 'runs').is_dir()]
  if not found:
    looked = ' and '.join(str(place) for place in places)
    raise UserError(
      f'p4lm is installed without its gin files (looked in {looked}): '
      'install it again from a clone (pip install -e .) or from a wheel'
    )
  return found
