"""Speculation: tokens are guessed, then several of them are computed in one step.

A guess, called a draft, costs time or saves it, and never changes an output. No torch here: the runner has the draft
model.
"""
