class UnsupportedModelError(ValueError):
    """The model is not there, damaged, or of a kind that we would not compute exactly."""
