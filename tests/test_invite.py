import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError
from runtime.invite import Invite, format_invite, parse_invite

RUN_ID = "0123456789abcdef0123456789abcdef01234567"
PEER_ID = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
ADDRESS = f"/ip4/203.0.113.7/tcp/31337/p2p/{PEER_ID}"
GOOD = f"atoll:{RUN_ID}@{ADDRESS}"

HEX = st.text("0123456789abcdef", min_size=40, max_size=40)
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PEER_IDS = st.text(BASE58, min_size=44, max_size=44).map("12D3KooW".__add__)
HOSTS = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: f"ip4/{ip}"),
    st.ip_addresses(v=6).map(lambda ip: f"ip6/{ip}"),
    st.sampled_from(["dns4/example.org", "dns6/a.b-c.example", "dns/localhost"]),
)
ADDRESSES = st.builds(lambda host, port, peer: f"/{host}/tcp/{port}/p2p/{peer}", HOSTS, st.integers(1, 65535), PEER_IDS)
TOKENS = st.none() | st.text("abcXYZ019._~-", min_size=1)
INVITES = st.builds(Invite, HEX, st.lists(ADDRESSES, min_size=1, max_size=5, unique=True).map(tuple), TOKENS)


@given(INVITES)
def test_what_was_formatted_is_parsed_back_equal(invite: Invite) -> None:
    assert parse_invite(format_invite(invite)) == invite


@given(INVITES, st.integers(10, 76), st.sampled_from(["\n", "\r\n", " \n  "]))
def test_a_mail_programs_line_breaks_change_nothing(invite: Invite, width: int, line_break: str) -> None:
    text = format_invite(invite)
    broken = line_break.join(text[at : at + width] for at in range(0, len(text), width))
    assert parse_invite(f"\n  {broken}\n") == invite


@given(st.text() | st.text().map(lambda tail: GOOD + tail) | st.text().map(lambda tail: f"atoll:{RUN_ID}@{tail}"))
def test_any_text_is_an_invite_or_a_config_error(text: str) -> None:
    try:
        parse_invite(text)
    except ConfigError as error:
        assert "\n" not in str(error)


@given(INVITES, st.data())
def test_one_character_too_few_never_crashes(invite: Invite, data: st.DataObject) -> None:
    text = format_invite(invite)
    cut = data.draw(st.integers(0, len(text) - 1))
    try:
        parse_invite(text[:cut] + text[cut + 1 :])
    except ConfigError as error:
        assert "an invite looks like atoll:" in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must begin with atoll:"),
        ("https://example.org", "must begin with atoll:"),
        (f"atoll:{RUN_ID}", "no @"),
        (f"atoll:{RUN_ID[:-1]}@{ADDRESS}", "40 lower-case hexadecimal digits"),
        (f"atoll:{RUN_ID.upper()}@{ADDRESS}", "40 lower-case hexadecimal digits"),
        (f"atoll:{RUN_ID}@", "must have the form"),
        (f"{GOOD},", "must have the form"),
        (f"atoll:{RUN_ID}@/ip4/203.0.113.7/tcp/31337", "must have the form"),
        (f"atoll:{RUN_ID}@/ip4/203.0.113.7/udp/31337/p2p/{PEER_ID}", "must have the form"),
        (f"atoll:{RUN_ID}@/unix/203.0.113.7/tcp/31337/p2p/{PEER_ID}", "must begin with one of /ip4"),
        (f"atoll:{RUN_ID}@/ip4/203.0.113.700/tcp/31337/p2p/{PEER_ID}", "where the ip4 host belongs"),
        (f"atoll:{RUN_ID}@/ip6/203.0.113.7/tcp/31337/p2p/{PEER_ID}", "where the ip6 host belongs"),
        (f"atoll:{RUN_ID}@/dns4/-/tcp/31337/p2p/{PEER_ID}", "where the dns4 host belongs"),
        (f"atoll:{RUN_ID}@/ip4/203.0.113.7/tcp/0/p2p/{PEER_ID}", "port from 1 to 65535"),
        (f"atoll:{RUN_ID}@/ip4/203.0.113.7/tcp/65536/p2p/{PEER_ID}", "port from 1 to 65535"),
        (f"atoll:{RUN_ID}@/ip4/203.0.113.7/tcp/31337/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "12D3KooW"),
        (f"{GOOD}?key=1", "after ? comes token"),
        (f"{GOOD}?token=", "after ? comes token"),
        (GOOD + "," + ADDRESS * 200, "characters, an invite at most"),
    ],
)
def test_a_malformed_invite_says_what_is_wrong_and_shows_a_good_one(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_invite(text)
    assert said in str(caught.value)
    assert "an invite looks like atoll:0123" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quotes_and_repeated_addresses_are_dropped() -> None:
    assert parse_invite(f'"{GOOD},{ADDRESS}"') == Invite(RUN_ID, (ADDRESS,))


def test_a_relayed_address_is_an_address() -> None:
    relayed = f"/ip4/203.0.113.7/tcp/31337/p2p/{PEER_ID}/p2p-circuit/p2p/{PEER_ID}"
    assert parse_invite(f"atoll:{RUN_ID}@{relayed}").addresses == (relayed,)
