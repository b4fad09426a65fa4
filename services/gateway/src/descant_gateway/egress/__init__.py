"""Where the gateway may connect to when the address is data."""
