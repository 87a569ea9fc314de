"""The listening socket of a server. Imports no other package, because the supervisor's memory stays small."""

from __future__ import annotations

import errno
import ipaddress
import socket
from functools import lru_cache

from headway.errors import UserError

BACKLOG = 2048  # connections that may wait to be accepted
_LOCAL_NAMES = ("localhost", "ip6-localhost")


def open_listener(host: str, port: int, anyone: bool) -> socket.socket:
    """A listening socket; clients that connect before the server has started wait. UserError for an address that cannot
    be bound, and for one that other machines can reach, unless `anyone` may reach it.
    """
    if not (anyone or is_loopback(host)):
        raise UserError(
            f"{host} is reachable from other machines and needs an API key; add --api-key, or --insecure to allow "
            "anyone"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"unknown host {host!r} ({error}); use a host name or an address of this machine") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        messages = {
            errno.EADDRINUSE: f"port {port} on {host} is in use; stop that program, or choose another port with --port",
            errno.EACCES: f"port {port} needs more rights than this user has; choose port 1024 or higher with --port",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine; pass one with --host, such as 127.0.0.1",
        }
        message = messages.get(
            error.errno or 0, f"port {port} on {host} cannot be bound ({error.strerror}); choose another one"
        )
        raise UserError(message) from None
    return sock


def url_of(sock: socket.socket) -> str:
    """The URL of a server that listens on this socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


@lru_cache(maxsize=256)
def is_loopback(name: str) -> bool:
    """Whether a name or an address is loopback, which other machines cannot reach."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name in _LOCAL_NAMES or name.endswith(".localhost")
