"""Which addresses are public, and how many ways there are to write one that is not."""

from __future__ import annotations

import pytest

from providers.addresses import AddressRules, Place, place_of

INSIDE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "no address",
    "",
]
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001::1"]


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not AddressRules().allows(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_is_public_is_allowed(address: str) -> None:
    assert AddressRules().allows(address)


def test_an_operator_opens_networks_and_no_more() -> None:
    rules = AddressRules(("10.0.0.0/8", "fd00::/8"))
    assert rules.allows("10.1.2.3") and rules.allows("::ffff:10.1.2.3") and rules.allows("fd00::1")
    assert not rules.allows("192.168.0.1") and not rules.allows("127.0.0.1") and not rules.allows("fe80::1")
    assert rules.is_opened("10.1.2.3") and not rules.is_opened("8.8.8.8")


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.01/",
        "http://1.2.3.4.5/",
        "http://a.0x/",
        "http://[::1/",
        "http://[::1%25eth0]/",
        "http://[127.0.0.1]x/",
        "https://u:p@h/",
        "https://u@h/",
        "https://@h/",
        "https://h\\@evil.example/",
        "https://h#@evil.example/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://a\u3002example/",
        "https://exa%6dple.com/",
        "https://h:80:80/",
        "https://h:/",
        "https:///path",
        "https://./",
        "https:h",
        "//h/",
        "ftp://h/",
        "file:///etc/passwd",
        "https://h /",
        " https://h/",
        "https://h\n/",
        "",
    ],
)
def test_a_url_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|odd"):
        place_of(url)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://docs.example.com/mcp?a=b@c", Place("https", "docs.example.com", 443)),
        ("HTTPS://Docs.Example.COM.:8443", Place("https", "docs.example.com", 8443)),
        ("http://127.0.0.1:9/x", Place("http", "127.0.0.1", 9)),
        ("http://localhost./", Place("http", "localhost", 80)),
        ("https://[0:0::1]/", Place("https", "::1", 443)),
        ("https://xn--bcher-kva.example/", Place("https", "xn--bcher-kva.example", 443)),
    ],
)
def test_where_a_url_leads(url: str, place: Place) -> None:
    assert place_of(url) == place
