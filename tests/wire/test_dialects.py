import pytest

from kbridge.wire import frames, legacy, v1
from kbridge.wire.dialects import LEGACY, V1, Dialect, select
from tests.wire.cases import MESSAGES

NAME = v1.SUBPROTOCOL


def test_the_subprotocol_has_the_name_of_jupyter_server() -> None:
    assert NAME == "v1.kernel.websocket.jupyter.org"
    assert (V1.subprotocol, LEGACY.subprotocol) == (NAME, None)


@pytest.mark.parametrize(
    ("offered", "preferred", "chosen"),
    [
        ([], None, LEGACY),
        ([NAME], None, V1),
        (["other", NAME], None, V1),
        (["other"], None, LEGACY),
        ([NAME], "", LEGACY),
        ([""], "", LEGACY),
        ([NAME], NAME, V1),
        ([], NAME, LEGACY),
        (["other", NAME], "other", LEGACY),
    ],
)
def test_the_offer_and_the_preference_select_the_dialect(
    offered: list[str], preferred: str | None, chosen: Dialect
) -> None:
    assert select(offered, preferred) is chosen


@pytest.mark.parametrize("msg", MESSAGES.values(), ids=MESSAGES)
def test_the_payload_is_the_encoded_message_with_its_opcode(msg) -> None:
    assert V1.payload(msg) == (frames.BINARY, v1.encode(msg))
    opcode, data = LEGACY.payload(msg)
    encoded = legacy.encode(msg)
    if isinstance(encoded, str):
        assert (opcode, data) == (frames.TEXT, encoded.encode())
    else:
        assert (opcode, data) == (frames.BINARY, encoded)
