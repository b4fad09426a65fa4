"""`descant run-batch`: a file of requests in OpenAI's batch format, answered by an engine in this process."""
