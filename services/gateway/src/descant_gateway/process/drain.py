"""How the gateway ends: /ready says no first, then nothing new is accepted, then what runs may end, up to a limit."""

import asyncio

import structlog
import uvicorn

_log = structlog.get_logger("descant_gateway.process.drain")


class Drain:
    """Whether the gateway is about to end; shown by /ready."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.is_draining = False
        self._delay_s = delay_s

    def begin(self, server: uvicorn.Server) -> None:
        """Once: after the delay, in which load balancers see that /ready says no, the server stops accepting.

        Asked again it stops at once.
        """
        if self.is_draining or not self._delay_s:
            self.is_draining = True
            server.should_exit = True
            return
        self.is_draining = True
        _log.info("draining: /ready says no, requests are still taken", seconds=self._delay_s)
        asyncio.get_running_loop().call_later(self._delay_s, _stop, server)


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True
