"""Whose turn it is while backends are saturated."""
