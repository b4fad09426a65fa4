"""Batches: files of requests, run at low priority when there is room, by all gateways together."""
