"""What the gateway knows of the organization: an immutable snapshot, and the same as a file of code."""
