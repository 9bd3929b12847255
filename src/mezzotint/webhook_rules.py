"""Whom this server may call, and with which signature: pure rules. Must not resolve a name or open a connection."""

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from mezzotint.errors import BadSetting

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOST = 253
_NAME = r"[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*"
# One reading of a URL for check and call alike: no user, no backslash, no fragment, no second spelling of a host.
_URL = re.compile(rf"(https?)://({_NAME})(?::([0-9]{{1,5}}))?((?:[/?][!\"$-\[\]-~]*)?)")
_HOST = re.compile(rf"(?:\*\.)?{_NAME}")
_PREFIX = "whsec_"
# Another address in disguise (NAT64, its local form, IPv4-compatible), and what sites had of their own before fc00::/7.
_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "fec0::/10")))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        usual = {"http": 80, "https": 443}[self.scheme]
        return self.host if self.port == usual else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What the operator allows. Without hosts nobody is called."""

    hosts: tuple[str, ...] = ()  # names, or *.NAME for all below one
    networks: tuple[Network, ...] = ()  # private ones that may be called all the same
    keys: tuple[bytes, ...] = field(default=(), repr=False)  # several while a secret rotates

    def refusal(self, url: str) -> str | None:
        """Why this URL may not be called, and the way out. None: it may, as far as its text says."""
        if not self.hosts:
            return "webhooks are off on this server; its operator can allow hosts with webhook_hosts"
        target = read(url)
        if target is None:
            return (
                "webhook.url must be https://HOST/PATH, in lower case up to the path, without user, fragment or spaces"
            )
        if target.scheme == "http" and not self.networks:
            return "webhook.url must be https; plain http is for networks of webhook_networks, and this server has none"
        if not any(_is_below(target.host, host) for host in self.hosts):
            return f"host {target.host!r} is not among those that this server may call (webhook_hosts)"
        return None

    def may_connect(self, address: str, scheme: str) -> bool:
        """Public addresses by https, those of `networks` by http too."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        if any(found in network for network in self.networks if network.version == found.version):
            return True
        return scheme == "https" and _is_public(found)

    def signature(self, message_id: str, timestamp: int, body: bytes) -> str:
        """Standard Webhooks: one signature for each key, the newest first."""
        signed = f"{message_id}.{timestamp}.".encode() + body
        digests = (hmac.digest(key, signed, "sha256") for key in self.keys)
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def read(url: str) -> Target | None:
    """None for anything that could be read in two ways."""
    found = _URL.fullmatch(url)
    if found is None or len(found[2]) > MAX_HOST or int(found[3] or 443) not in range(1, 65536):
        return None
    scheme, host, port, path = found[1], found[2], found[3], found[4]
    usual = 443 if scheme == "https" else 80
    return Target(scheme, host, int(port or usual), path if path.startswith("/") else f"/{path}")


def policy(hosts: Iterable[str], networks: Iterable[str], secrets: Iterable[str]) -> Policy:
    """From the settings. Raises BadSetting; a secret is never shown."""
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise BadSetting(
                f"webhook_hosts: {host[:80]!r} is not a host in lower case such as example.com, *.example.com"
            )
    found = Policy(
        hosts=tuple(hosts),
        networks=tuple(_network(text) for text in networks),
        keys=tuple(_key(number, text) for number, text in enumerate(secrets, 1)),
    )
    if found.hosts and not found.keys:
        raise BadSetting("webhook_hosts needs webhook_secrets: whsec_ and the base64 of 32 random bytes")
    return found


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise BadSetting(f"webhook_networks: {text[:80]!r} is not a network such as 10.0.0.0/8") from error


def _key(number: int, text: str) -> bytes:
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise BadSetting(f"webhook_secrets: number {number} is not whsec_ and the base64 of 24 to 64 bytes")
    return key


def _is_below(host: str, allowed: str) -> bool:
    return host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:]))


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address.sixtofour is not None or address.teredo is not None or any(address in one for one in _NOT_PUBLIC)
    ):
        return False
    return address.is_global and not address.is_multicast
