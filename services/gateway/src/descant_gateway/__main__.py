"""`python -m descant_gateway` is `descant gateway`."""

from descant_gateway.main import gateway

gateway()
