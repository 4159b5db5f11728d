"""The two refusals that a caller may want to catch; wrong arguments are plain `ValueError`s."""


class NotPrunable(ValueError):
    """The model has no such units, or no rule is proven for it; the message says what is supported."""


class NeedsCalibration(ValueError):
    """The criterion looks at data and none was given."""
