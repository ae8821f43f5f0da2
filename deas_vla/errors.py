"""The one exception a command turns into a single line and a non-zero exit."""


class DeasError(Exception):
    """A mistake that the user can mend.

    The message is one line that names the thing, its value and the remedy.
    """
