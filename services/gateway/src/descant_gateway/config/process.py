"""How this gateway runs: where it listens, how it ends, what it tells of itself."""

from dataclasses import dataclass
from typing import Self

from descant_gateway.config.environment import EnvironmentReader
from descant_gateway.config.parsers import any_text, http_url, log_level, port, positive_int, seconds, seconds_or_none


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free port."""
    workers: int = 1
    """Processes on the one port."""
    num_processes: int = 1
    """Gateway processes that share limits and backends: each takes this part of them where it decides by itself."""
    max_body_bytes: int = 8 << 20
    shutdown_grace_s: float = 30.0
    """How long running streams may take to end after SIGTERM."""
    drain_delay_s: float = 0.0
    """After SIGTERM /ready says no for so long before nothing new is accepted: longer than a balancer's probes."""
    log_level: str = "info"
    otlp_endpoint: str = ""
    """Where traces go, OTLP over HTTP: http://collector:4318/v1/traces. Empty: there are none."""

    @classmethod
    def read(cls, read: EnvironmentReader) -> Self:
        return cls(
            host=read.value("DESCANT_GATEWAY_HOST", cls.host, any_text),
            port=read.value("DESCANT_GATEWAY_PORT", cls.port, port),
            workers=read.value("DESCANT_GATEWAY_WORKERS", cls.workers, positive_int),
            num_processes=read.value("DESCANT_NUM_PROCESSES", cls.num_processes, positive_int),
            max_body_bytes=read.value("DESCANT_MAX_BODY_BYTES", cls.max_body_bytes, positive_int),
            shutdown_grace_s=read.value("DESCANT_SHUTDOWN_GRACE_S", cls.shutdown_grace_s, seconds),
            drain_delay_s=read.value("DESCANT_DRAIN_DELAY_S", cls.drain_delay_s, seconds_or_none),
            log_level=read.value("DESCANT_LOG_LEVEL", cls.log_level, log_level),
            otlp_endpoint=read.value("DESCANT_OTLP_ENDPOINT", cls.otlp_endpoint, http_url),
        )
