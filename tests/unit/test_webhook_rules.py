import base64
import time

import pytest

from mezzotint.errors import BadSetting
from mezzotint.webhook_rules import Policy, policy, read
from mezzotint.webhooks import LONGEST_WAIT_S, TRIES, wait_after

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OPEN = policy(["example.com", "*.shop.example.com", "127.0.0.1"], [], [SECRET])


def test_nobody_is_called_before_the_settings_name_a_host() -> None:
    assert "webhook_hosts" in str(Policy().refusal("https://example.com/"))
    assert "webhook_networks" in str(OPEN.refusal("http://example.com/"))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a?b=1",
        "https://a.b.shop.example.com:8443",
        "https://example.com?x",
        f"https://{'a' * 63}.shop.example.com/",
        f"https://{'a.' * 118}shop.example.com/",
    ],
)
def test_hosts_of_the_list_may_be_called(url: str) -> None:
    assert OPEN.refusal(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://shop.example.com/",  # only those below it are listed
        "https://notexample.com/",
        "https://example.com.evil.net/",
        "https://evil.net/?https://example.com/",
        "https://user@example.com/",
        "https://example.com@evil.net/",
        "https://example.com\\@evil.net/",
        "https://evil.net\\.example.com/",
        "https://example.com#@evil.net/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://example.com:80:80/",
        "https://EXAMPLE.com/",
        "https://example.com/ a",
        "https://example.com/\r\nHost: evil.net",
        "https://example.com/\n",
        "https://[::1]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://ёxample.com/",
        "https://.shop.example.com/",
        "https://a..shop.example.com/",
        f"https://{'a' * 64}.shop.example.com/",
        f"https://{'a.' * 119}shop.example.com/",  # 254 letters
        "ftp://example.com/",
        "//example.com/",
        "file:///etc/passwd",
        "",
    ],
)
def test_an_address_that_is_private_misspelt_or_of_no_named_host_is_refused(url: str) -> None:
    assert OPEN.refusal(url) is not None


def test_what_is_called_is_what_was_checked() -> None:
    target = read("https://example.com:8443/a?b=1")
    assert target is not None
    assert (target.host, target.port, target.path, target.authority) == (
        "example.com",
        8443,
        "/a?b=1",
        "example.com:8443",
    )
    bare = read("http://example.com?x")
    assert bare is not None
    assert (bare.port, bare.path, bare.authority) == (80, "/?x", "example.com")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
        "64:ff9b:1::a00:1", "fec0::1", "::7f00:1", "::10.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_not_called(address: str) -> None:
    assert not OPEN.may_connect(address, "https")


def test_public_addresses_are_called_by_https_and_named_networks_by_http_too() -> None:
    assert OPEN.may_connect("93.184.215.14", "https")
    assert OPEN.may_connect("2606:2800:21f:cb07:6820:80da:af6b:8b2c", "https")
    assert not OPEN.may_connect("93.184.215.14", "http")
    inner = policy(["example.com"], ["10.0.0.0/8", "fc00::/7"], [SECRET])
    assert inner.refusal("http://example.com/") is None
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fc00::1"):
        assert inner.may_connect(address, "http")
    assert not inner.may_connect("192.168.0.1", "https")
    assert not inner.may_connect("93.184.215.14", "http")


@pytest.mark.parametrize(
    ("hosts", "networks", "secrets", "word"),
    [
        (["example.com"], [], [], "webhook_secrets"),
        (["example.com"], [], ["canary"], "webhook_secrets"),
        (["example.com"], [], ["whsec_Y2FuYXJ5"], "webhook_secrets"),
        (["example.com"], [], ["whsec_canary!"], "webhook_secrets"),
        (["https://example.com"], [], [SECRET], "webhook_hosts"),
        (["*"], [], [SECRET], "webhook_hosts"),
        (["example.com"], ["10.0.0.1/8"], [SECRET], "webhook_networks"),
    ],
)
def test_settings_that_cannot_be_stop_the_start_and_show_no_secret(
    hosts: list[str], networks: list[str], secrets: list[str], word: str
) -> None:
    with pytest.raises(BadSetting, match=word) as caught:
        policy(hosts, networks, secrets)
    assert "canary" not in caught.value.message


def test_a_policy_that_is_printed_shows_no_key() -> None:
    assert repr(OPEN.keys[0]) not in repr(OPEN)


def test_signatures_are_those_that_receivers_libraries_check() -> None:
    client = pytest.importorskip("openai").OpenAI(api_key="none")
    other = "whsec_" + base64.b64encode(bytes(32)).decode()
    body, now = b'{"type":"session.succeeded"}', int(time.time())
    for keys in ([SECRET], [other, SECRET], [SECRET, other]):
        signature = policy(["example.com"], [], keys).signature("evt_1", now, body)
        headers = {"webhook-id": "evt_1", "webhook-timestamp": str(now), "webhook-signature": signature}
        client.webhooks.verify_signature(body.decode(), headers, secret=SECRET)
        with pytest.raises(ValueError, match=r"(?i)signature"):
            client.webhooks.verify_signature(body.decode() + " ", headers, secret=SECRET)


def test_tries_are_further_and_further_apart() -> None:
    waits = [wait_after(tries, 0.0) for tries in range(1, TRIES)]
    assert waits[:3] == [10, 30, 90]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S
    assert wait_after(1, 1.0) == pytest.approx(8)
