"""The sockets that the server listens on, bound before anything is loaded."""

from __future__ import annotations

import errno
import os
import socket

from stars_engine.errors import ConfigError, Problem

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as ::1 where IPv6 is off


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of a host.

    Args:
        host: A name or an address.
        port: The port; 0 chooses a free one.

    Raises:
        ConfigError: The host is unknown, or the port is in use or not allowed.
    """
    try:
        kind, passive = socket.SOCK_STREAM, socket.AI_PASSIVE
        infos = dict.fromkeys(socket.getaddrinfo(host, port, type=kind, flags=passive))
    except OSError as error:
        raise _refused("host", f"{host!r} is no address of this machine", error) from None
    bound: list[socket.socket] = []
    failed: OSError | None = None
    for family, kind, proto, _, address in infos:
        listener = socket.socket(family, kind, proto)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            same = bound[0].getsockname()[1] if bound else port
            listener.bind((address[0], same, *address[2:]))
        except OSError as error:
            listener.close()
            failed = error
            if error.errno not in _ABSENT:
                break
        else:
            bound.append(listener)
    if failed is not None and (failed.errno not in _ABSENT or not bound):
        for listener in bound:
            listener.close()
        is_absent = failed.errno in _ABSENT
        field = "host" if is_absent else "port"
        raise _refused(field, f"cannot listen on {host}:{port}", failed) from None
    return bound


def _refused(field: str, what: str, error: OSError) -> ConfigError:
    hint = "use 127.0.0.1, or 0.0.0.0 for all addresses of this machine"
    if field == "port":
        hint = "choose another port, or end the process that listens on this one"
    text = f"{what}: {error.strerror or error}. Hint: {hint}"
    return ConfigError("ServerParams", [Problem(field, text)])
