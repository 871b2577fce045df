"""The messages of jobs: test vectors of RFC 7748, and everything that could be changed."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from zmq import curve_keypair
from zmq.utils import z85

from kbridge.slurm import job, sealed
from kbridge.slurm.sealed import Seals, proof, public_key, x25519

# RFC 7748, section 5.2: secret, public, result.
VECTORS = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]
# Section 6.1.
ALICE = "77076d0a7318a57d3c16c17251b26645df4f6b9a2e9a2b8d5c8a7fe1cd3f1e26"


@pytest.mark.parametrize(("secret", "public", "result"), VECTORS)
def test_the_vectors_of_the_rfc(secret: str, public: str, result: str) -> None:
    assert x25519(bytes.fromhex(secret), bytes.fromhex(public)).hex() == result


def test_the_iterated_vector_of_the_rfc() -> None:
    k = u = (9).to_bytes(32, "little")
    for _ in range(1000):
        k, u = x25519(k, u), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_another_implementation_agrees() -> None:
    public, secret = curve_keypair()
    assert public_key(z85.decode(secret)) == z85.decode(public)


UNREADABLE = r"signature|base64|small order"


class Ends:
    """The two sides of one job."""

    def __init__(self, token: bytes = b"t" * 32) -> None:
        job_secret, bridge_secret = os.urandom(32), os.urandom(32)
        self.job_public = public_key(job_secret)
        self.bridge_public = public_key(bridge_secret)
        self.job = Seals(token, job_secret, self.bridge_public, self.job_public)
        self.bridge = Seals(token, bridge_secret, self.job_public, self.job_public)


def test_the_other_side_reads_a_message_and_nobody_else() -> None:
    ends = Ends()
    content = {"text": "ä" * 1000, "number": 1}
    text = ends.job.seal("job", content)
    assert ends.bridge.open("job", text) == content
    assert ends.job.open("bridge", ends.bridge.seal("bridge", content)) == content
    assert "number" not in text
    with pytest.raises(ValueError, match=UNREADABLE):  # sent back to its sender
        ends.job.open("bridge", text)
    with pytest.raises(ValueError, match=UNREADABLE):
        Ends().bridge.open("job", text)


def test_the_token_alone_reads_nothing() -> None:
    ends, attacker = Ends(), os.urandom(32)
    knows_the_token = Seals(b"t" * 32, attacker, ends.bridge_public, ends.job_public)
    with pytest.raises(ValueError, match=UNREADABLE):
        knows_the_token.open("bridge", ends.bridge.seal("bridge", {"key": "value"}))


@pytest.mark.parametrize("change", ["flip", "cut", "text", "empty"])
def test_a_changed_message_is_refused(change: str) -> None:
    ends = Ends()
    text = ends.job.seal("job", {"a": 1})
    changed = {
        "flip": [text[:i] + ("A" if text[i] != "A" else "B") + text[i + 1 :] for i in range(60)],
        "cut": [text[:i] for i in range(0, len(text), 4)],
        "text": ["?", "ä", text + "=A"],
        "empty": [""],
    }
    for one in changed[change]:
        with pytest.raises(ValueError, match=UNREADABLE):
            ends.bridge.open("job", one)


def test_a_message_is_never_the_same_twice() -> None:
    ends = Ends()
    assert ends.job.seal("job", {}) != ends.job.seal("job", {})


def test_a_public_key_of_small_order_is_refused() -> None:
    with pytest.raises(ValueError, match=UNREADABLE):
        Seals(b"t" * 32, os.urandom(32), bytes(32), bytes(32))


def test_a_proof_belongs_to_one_key() -> None:
    assert proof(b"t", b"one") != proof(b"t", b"two")
    assert proof(b"t", b"one") != proof(b"u", b"one")


@pytest.mark.parametrize("module", [sealed, job])
def test_the_modules_of_the_script_are_python_3_8_and_standard_library(module: object) -> None:
    source = Path(str(module.__file__)).read_text()  # type: ignore[attr-defined]
    tree = ast.parse(source, feature_version=(3, 8))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        for name in names:
            assert name == "kbridge.slurm.sealed" or name.split(".")[0] in sys.stdlib_module_names
