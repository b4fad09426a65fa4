"""One file per group of routes: decode, ask, answer. What is decided, is decided elsewhere."""
