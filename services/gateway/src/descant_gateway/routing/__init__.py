"""Which backends may serve a request, best first, and what is known of each."""
