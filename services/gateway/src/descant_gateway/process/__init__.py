"""What every gateway process has: workers above it, an orderly end, logs and metrics."""
