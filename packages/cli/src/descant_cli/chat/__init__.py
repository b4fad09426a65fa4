"""`descant chat`: a conversation in the terminal with any model or adapter of a server with OpenAI's API."""
