"""Grammars: what a client demands of an output's form, compiled to masks over the vocabulary.

`spec` says what is demanded, `build` chooses a library for it, in a process of its own (`sandbox`); `compiler` gives
the engine what came of it. The libraries are imported where they are first used: the engine runs without them.
"""
