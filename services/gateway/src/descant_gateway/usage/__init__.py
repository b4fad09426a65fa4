"""What one request used, as data: metered while it runs, recorded when it ended."""
