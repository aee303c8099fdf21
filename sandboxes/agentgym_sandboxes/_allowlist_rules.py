"""Which hosts a sandbox may reach by `SandboxSpec.allow`, and which addresses no name may lead to."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Self

from agentgym.errors import CapabilityError

Address = IPv4Address | IPv6Address

_PORTS = frozenset((80, 443))
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_ENTRY = re.compile(
    r"(?P<wild>\*\.)?(?P<host>\[[^\]]*\]|[^:=\[\]*]*|[0-9a-fA-F:.]*)(:(?P<port>[0-9]{1,5}))?(=(?P<at>.*))?"
)
_HOW = "write 'index.test', '*.deb.test', 'host:8443', or for an address of your own network 'name:port=10.0.0.5'"
# Beside what the standard library knows as not global: tunnels and translations that hide another address.
_HIDING_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_GLOBAL_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_SPECIAL_V4 = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")))


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the list."""

    host: str
    """In lower case, without the last dot; an address in its shortest form."""
    is_suffix: bool
    ports: frozenset[int]
    address: Address | None
    """Where the host is, by the list's own word: then no name is resolved, and the address need not be public."""

    def permits(self, host: str, port: int) -> bool:
        """Whether a host is meant."""
        return port in self.ports and (host.endswith(f".{self.host}") if self.is_suffix else host == self.host)


@dataclass(frozen=True, slots=True)
class Rules:
    """The whole list."""

    names: tuple[str, ...]
    """The entries as whoever asks in vain may see them: without addresses."""
    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, allow: Iterable[str]) -> Self:
        """Read the entries.

        >>> Rules.parse(["*.deb.test", "git.test:8080=127.0.0.1"]).find("git.test", 8080).address
        IPv4Address('127.0.0.1')

        Raises:
            CapabilityError: an entry is malformed, or names an address that nothing in a sandbox may reach.
        """
        entries = tuple(allow)
        return cls(tuple(one.partition("=")[0] for one in entries), tuple(map(_rule, entries)))

    def find(self, host: str, port: int) -> Rule | None:
        """Return the first rule that permits a host that `host_of` returned."""
        return next((rule for rule in self.rules if rule.permits(host, port)), None)


def host_of(text: str) -> str | None:
    """Return a host's one spelling, or None if it is neither a name nor an address in its usual form.

    >>> host_of("Index.test."), host_of("[::ffff:127.0.0.1]"), host_of("2130706433"), host_of("0x7f.1")
    ('index.test', '127.0.0.1', None, None)
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if (address := address_of(bare)) is not None:
        return str(address)
    name = text.lower().removesuffix(".")
    if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
        return None
    return name


def address_of(text: str) -> Address | None:
    """Return the address that a text spells, an IPv4 address in an IPv6 one as itself; None if it spells none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet and hides no other.

    >>> [is_public(ip_address(one)) for one in ("1.1.1.1", "169.254.169.254", "64:ff9b::7f00:1", "2606:4700::1111")]
    [True, False, False, True]
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _GLOBAL_V6 and address.is_global and not any(address in one for one in _HIDING_V6)
    is_special = address.is_multicast or address.is_reserved or any(address in one for one in _SPECIAL_V4)
    return address.is_global and not is_special


def is_ours(address: Address) -> bool:
    """Whether an address is one of this machine's own, where services may listen that trust whoever is here."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _rule(entry: str) -> Rule:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise CapabilityError(f"allow holds {entry!r}, which is no host: {_HOW}")
    host = host_of(_ascii(found["host"]))
    literal = address_of(host) if host else None
    port = int(found["port"]) if found["port"] else None
    if host is None or (literal and (found["wild"] or found["at"])) or port == 0 or (port or 0) > 65535:
        raise CapabilityError(f"allow holds {entry!r}, which is no host: {_HOW}")
    address = literal
    if found["at"] is not None:
        address = address_of(found["at"].removeprefix("[").removesuffix("]"))
        if address is None:
            raise CapabilityError(f"allow holds {entry!r}, but {found['at']!r} is no address: {_HOW}")
    if address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified):
        raise CapabilityError(
            f"allow holds {entry!r}, but {address} is a link-local, multicast or unspecified address, where machines "
            "hand out their credentials: no sandbox may reach those"
        )
    return Rule(host, bool(found["wild"]), frozenset((port,)) if port else _PORTS, address)


def _ascii(name: str) -> str:
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return ""
