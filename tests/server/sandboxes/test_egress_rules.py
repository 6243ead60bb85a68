"""Which hosts an allow-list opens, and which addresses stay closed whatever it says."""

import ipaddress

import pytest

from server.sandboxes.egress_http import Refusal, authority
from server.sandboxes.egress_rules import Rules, is_public


@pytest.mark.parametrize(
    ("allowed", "host", "reachable"),
    [
        ("pypi.example", "pypi.example", True),
        ("PyPI.Example.", "pypi.example", True),
        ("pypi.example", "evil-pypi.example", False),
        ("pypi.example", "pypi.example.evil", False),
        ("pypi.example", "sub.pypi.example", False),
        ("*.pypi.example", "a.b.pypi.example", True),
        ("*.pypi.example", "pypi.example", False),
        ("*.pypi.example", "evilpypi.example", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.0/24", "192.0.2.8", True),
        ("192.0.2.0/24", "192.0.3.8", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("0.0.0.0/0", "pypi.example", False),
        ("0.0.0.0/0", "2001:db8::1", False),
    ],
)
def test_a_host_is_reachable_if_an_entry_names_it(allowed: str, host: str, reachable: bool) -> None:
    assert Rules([allowed]).host(host) is reachable


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "a..b", "https://a.example", "a.example:443", "-a", "a b", "*.*.b", "10.0.0.0/33", "é.example"]
)
def test_an_entry_that_is_no_host_is_an_error(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        Rules([entry])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.17.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
        "2001:0:1::1",
        "2001:db8::1",
    ],
)
def test_what_is_not_public_is_closed_also_to_names_and_to_the_widest_range(address: str) -> None:
    parsed = ipaddress.ip_address(address)

    assert not is_public(parsed)
    assert not Rules(["a.example", "0.0.0.0/0", "::/0"]).address(parsed)
    assert Rules(["a.example", address]).address(parsed), "but opens if it is named itself"


def test_a_private_range_opens_its_addresses_but_not_the_gateway_in_it() -> None:
    rules = Rules(["172.18.0.0/16"], gateways=["172.18.0.1"])

    assert rules.address(ipaddress.ip_address("172.18.0.5"))
    assert not rules.address(ipaddress.ip_address("172.18.0.1"))
    assert not rules.address(ipaddress.ip_address("172.19.0.5"))


def test_private_networks_can_be_opened_to_all_but_not_the_machine_itself() -> None:
    rules = Rules(["a.example"], gateways=["172.18.0.1"], allow_private=True)

    assert rules.address(ipaddress.ip_address("10.0.0.5"))
    assert not any(rules.address(ipaddress.ip_address(own)) for own in ("127.0.0.1", "169.254.169.254", "172.18.0.1", "::1"))


@pytest.mark.parametrize(
    "text", ["a", "a:0", "a:65536", "a:b", ":80", "[::1", "::1:80", "a@b:80", "a b:80", "[::g]:80", "a..b:80", "[::1%eth0]:80"]
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        authority(text, None)


def test_the_ways_to_write_one_host_are_one_host() -> None:
    assert authority("A.Example.:443", None) == authority("a.example", 443) == ("a.example", 443)
    assert authority("[0:0::1]:80", None) == ("::1", 80)
    assert authority("[::ffff:127.0.0.1]:80", None) == ("127.0.0.1", 80)
