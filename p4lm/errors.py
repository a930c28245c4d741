"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
  """Bad input or configuration, told in one message without a traceback.

  The message names what was received (file, line, argument), what was expected
  and how to mend it. The command line prints it and exits with status 1.
  """
