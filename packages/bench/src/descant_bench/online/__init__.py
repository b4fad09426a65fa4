"""Load on any server with OpenAI's API: prompts, arrivals, one request, many of them, and what came of them.

Imports neither torch nor the engine: it runs wherever the clients are.
"""
