"""Where grammars are compiled: `python -m descant_engine.grammar.sandbox FD`, started by `sandbox_client`.

A grammar is a program from a stranger. This process has the libraries loaded and forks for each one; the child has
limits on time and memory that the kernel enforces, so that nothing a library does can hurt more than its own spec.

FD carries one frame, the vocabulary, and back the word that all is ready; then a socket for each spec. On that socket
comes the spec; back go the word that it is here, then the builds as they are made, or the reason why there is none. Its
end is the child's end.
"""

import os
import resource
import signal
import socket
import struct
import sys
from typing import NoReturn, TypeVar

import msgspec

from descant_engine.grammar.build import Backends, Build, builds
from descant_engine.grammar.spec import BackendName, GrammarRefused, GrammarSpec
from descant_engine.grammar.vocabulary import Vocabulary

READY = b"r"
"""What the process says once it has loaded the libraries."""
CPU_SECONDS = 1.0
WALL_SECONDS = 1.2
"""Whoever asked waits no longer, however busy the machine is."""
MEMORY_BYTES = 1 << 30
"""Beside what the libraries take."""
POLITENESS = 5

_LENGTH = struct.Struct(">I")
MessageT = TypeVar("MessageT")


class Setup(msgspec.Struct, frozen=True):
    vocabulary: Vocabulary
    backends: tuple[BackendName, ...]


class Taken(msgspec.Struct, frozen=True, tag=True):
    """The spec is here: what happens from now on may be its doing."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    reason: str


class Built(msgspec.Struct, frozen=True, tag=True):
    build: Build


Outcome = Taken | Built | Refused


def send_frame(connection: socket.socket, message: object) -> None:
    payload = msgspec.msgpack.encode(message)
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive_outcome(connection: socket.socket) -> Outcome | None:
    """None at the end."""
    payload = _receive_payload(connection)
    return msgspec.msgpack.decode(payload, type=Outcome) if payload else None


def receive_frame(connection: socket.socket, kind: type[MessageT]) -> MessageT | None:
    """None at the end."""
    payload = _receive_payload(connection)
    return msgspec.msgpack.decode(payload, type=kind) if payload else None


def _receive_payload(connection: socket.socket) -> bytes:
    """Empty at the end."""
    header = _receive_exactly(connection, _LENGTH.size)
    return _receive_exactly(connection, _LENGTH.unpack(header)[0]) if header else b""


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Empty if the end comes before."""
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            return b""
        data += part
    return bytes(data)


def compile_into(connection: socket.socket, backends: Backends) -> None:
    spec = receive_frame(connection, GrammarSpec)
    if spec is None:
        return
    send_frame(connection, Taken())
    try:
        for build in builds(spec, backends):
            send_frame(connection, Built(build))
    except GrammarRefused as error:
        send_frame(connection, Refused(str(error)))
    except (MemoryError, RecursionError):
        send_frame(connection, Refused("it takes too much memory to compile"))


def _limit_this_process() -> None:
    """What exceeds a limit of time is killed by the kernel, whatever it is doing."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (size := _address_space_bytes()) is not None:
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))


def _address_space_bytes() -> int | None:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None  # not Linux


def _work(connection: socket.socket, backends: Backends) -> NoReturn:
    status = 1
    try:
        _limit_this_process()
        compile_into(connection, backends)
        status = 0
    finally:
        os._exit(status)


def serve(control: socket.socket) -> None:
    """Until the engine closes its end."""
    setup = receive_frame(control, Setup)
    if setup is None:
        return
    backends = Backends(setup.vocabulary, setup.backends)
    backends.warm_up()
    control.sendall(READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        for descriptor in descriptors:
            with socket.socket(fileno=descriptor) as connection:
                if os.fork() == 0:
                    control.close()
                    _work(connection, backends)


def main() -> None:
    os.nice(POLITENESS)
    # Nobody waits for the children: the kernel may forget them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)


if __name__ == "__main__":
    main()
