import hashlib

import pytest
from jupyter_client.session import Session

from kbridge.wire.signing import Signer

PARTS = [b'{"msg_id": "a"}', b"{}", b"{}", '{"text": "žluť"}'.encode()]
KEYS = {"uuid": b"0b5a3e3c-2b53-4d6b-9d3e-6a1f9c2d7e10", "a byte": b"\0", "long": b"key" * 100}
# The hashes with a constructor in hashlib, which Session accepts.
HASHES = sorted(n for n in hashlib.algorithms_guaranteed if not n.startswith("shake"))


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("name", HASHES)
def test_signatures_equal_those_of_session(name: str, key: bytes) -> None:
    scheme = f"hmac-{name}"
    signer, session = Signer(key, scheme), Session(key=key, signature_scheme=scheme)
    assert signer.enabled
    assert signer.sign(PARTS) == session.sign(PARTS)
    assert signer.sign(PARTS) == session.sign(PARTS)  # the first call leaves no state
    assert signer.verify(session.sign(PARTS), PARTS)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 1 << 20])
def test_large_parts_are_signed_as_small_ones(size: int) -> None:
    parts = [*PARTS[:3], b"x" * size]
    signature = Session(key=b"k").sign(parts)
    signer = Signer(b"k")
    assert signer.sign(parts) == signature
    assert signer.verify(signature, [*map(memoryview, parts)])
    assert not signer.verify(signature, [*parts[:3], parts[3][:-1] + b"y"])


@pytest.mark.parametrize("name", sorted(hashlib.algorithms_available))
def test_every_hash_name_of_hashlib_signs_or_is_refused(name: str) -> None:
    try:
        size = hashlib.new(name).digest_size
    except ValueError:  # listed, but switched off in this OpenSSL
        size = 0
    if not size:
        with pytest.raises(ValueError, match="signature_scheme"):
            Signer(b"k", f"hmac-{name}")
        return
    signer = Signer(b"k", f"hmac-{name}")
    assert len(signer.sign(PARTS)) == 2 * size
    assert signer.verify(signer.sign(PARTS), PARTS)


def test_an_empty_key_signs_nothing_and_accepts_everything() -> None:
    signer = Signer(b"")
    assert not signer.enabled
    assert signer.sign(PARTS) == b"" == Session(key=b"").sign(PARTS)
    assert signer.verify(b"", PARTS)
    assert signer.verify(b"anything", PARTS)


@pytest.mark.parametrize("index", range(4))
def test_each_part_is_signed(index: int) -> None:
    signer = Signer(b"k")
    forged = [*PARTS]
    forged[index] += b" "
    assert not signer.verify(signer.sign(PARTS), forged)


@pytest.mark.parametrize("signature", [b"", b"0", b"\xff" * 64, memoryview(b"0" * 64)])
def test_a_value_that_is_not_a_signature_is_not_accepted(signature: bytes | memoryview) -> None:
    assert not Signer(b"k").verify(signature, PARTS)


def test_the_signature_of_another_key_is_not_accepted() -> None:
    assert not Signer(b"k").verify(Signer(b"l").sign(PARTS), PARTS)


def test_views_are_signed_as_their_bytes() -> None:
    signer = Signer(b"k")
    views = [memoryview(p) for p in PARTS]
    assert signer.verify(memoryview(signer.sign(PARTS)), views)


@pytest.mark.parametrize(
    "scheme", ["", "sha256", "hmac-", "hmac-md6", "hmac_sha256", "hmac-shake_128", "-sha256"]
)
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match="signature_scheme"):
        Signer(b"k", scheme)


def test_repr_does_not_show_the_key() -> None:
    assert repr(Signer(b"secret")) == "<Signer hmac-sha256>"
    assert repr(Signer(b"")) == "<Signer off>"
