"""Open a port of this machine that no other machine reaches."""

from __future__ import annotations

import errno
import ipaddress
import socket

from imixer.errors import InputError

DEFAULT_PORT = 8765
_LOCAL_NAME = "localhost"
_LARGEST_PORT = 65535


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port of the loopback interface. Who connects waits until somebody answers.

    Args:
        host: `localhost`, or an address of this machine to itself such as `127.0.0.1` or `::1`.
        port: The port; 0 takes any that is free.

    Raises:
        InputError: If other machines could reach the host, or the port is out of range, in use or not allowed.
    """
    address = _loopback_address(host, port)
    if not 0 <= port <= _LARGEST_PORT:
        raise InputError(f"port is {port}; give 1 to {_LARGEST_PORT}, or 0 for any that is free")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a port that was used a moment ago
        opened.bind((str(address), port))
        opened.listen()  # or a second process could bind it too
    except OSError as error:
        opened.close()
        raise InputError(_reason(error, host, port)) from error
    return opened


def url_of(opened: socket.socket) -> str:
    """Return the address of a page at the port, such as `http://127.0.0.1:8765/`."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}/" if opened.family == socket.AF_INET6 else f"http://{host}:{port}/"


def is_local_name(host: str) -> bool:
    """Say whether a host names this machine to itself. A page elsewhere could give its own name our address."""
    if host.lower() == _LOCAL_NAME:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _loopback_address(host: str, port: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if not is_local_name(host):
        raise InputError(
            f"host is {host}, and the page is for this machine alone; give 127.0.0.1, and from elsewhere reach it by "
            f"`ssh -L {port}:127.0.0.1:{port}`"
        )
    return ipaddress.ip_address("127.0.0.1" if host.lower() == _LOCAL_NAME else host.strip("[]"))


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; give another with --port, or --port 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"port {port} is kept for the system; give 1024 or more with --port"
    return f"port {port} of {host} cannot be opened, {error.strerror}; give --host 127.0.0.1"
