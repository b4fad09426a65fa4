"""How much a request may use: limits as data, their counters in Valkey, the ticket that reserves and settles."""
