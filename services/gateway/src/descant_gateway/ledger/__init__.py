"""The books: every request settled, its record kept through any outage, counters held against what was charged."""
