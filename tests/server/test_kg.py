import pytest
from traitlets import TraitError

from kbridge.server import kg
from kbridge.server.app import KbridgeApp

CLASSES = {cls.__name__: cls for cls in (KbridgeApp, *KbridgeApp.classes)}


@pytest.mark.parametrize(
    ("name", "value", "setting", "meaning"),
    [
        ("KG_AUTH_TOKEN", "t", "KbridgeApp.token", "t"),
        ("KG_AUTH_TOKEN", "", "KbridgeApp.token", ""),
        ("KG_IP", "0.0.0.0", "KbridgeApp.ip", "0.0.0.0"),
        ("KG_PORT", "9000", "KbridgeApp.port", 9000),
        ("KG_PORT_RETRIES", "3", "KbridgeApp.port_retries", 3),
        ("KG_BASE_URL", "/k", "KbridgeApp.base_url", "/k"),
        ("KG_LIST_KERNELS", "True", "KbridgeApp.list_kernels", True),
        ("KG_LIST_KERNELS", "False", "KbridgeApp.list_kernels", False),
        ("KG_LIST_KERNELS", "", "KbridgeApp.list_kernels", False),
        ("KG_ALLOW_CREDENTIALS", "true", "KbridgeApp.allow_credentials", "true"),
        ("KG_ALLOW_HEADERS", "X-A", "KbridgeApp.allow_headers", "X-A"),
        ("KG_ALLOW_METHODS", "GET", "KbridgeApp.allow_methods", "GET"),
        ("KG_ALLOW_ORIGIN", "*", "KbridgeApp.allow_origin", "*"),
        ("KG_EXPOSE_HEADERS", "X-B", "KbridgeApp.expose_headers", "X-B"),
        ("KG_MAX_AGE", "5", "KbridgeApp.max_age", "5"),
        ("KG_TRUST_XHEADERS", "True", "KbridgeApp.trust_xheaders", True),
        ("KG_CERTFILE", "c.pem", "KbridgeApp.certfile", "c.pem"),
        ("KG_KEYFILE", "k.pem", "KbridgeApp.keyfile", "k.pem"),
        ("KG_CLIENT_CA", "a.pem", "KbridgeApp.client_ca", "a.pem"),
        ("KG_SSL_VERSION", "5", "KbridgeApp.ssl_version", 5),
        ("KG_WS_PING_INTERVAL_SECS", "0", "KbridgeApp.ws_ping_interval", 0),
        ("KG_MAX_KERNELS", "4", "BridgeKernelManager.max_kernels", 4),
        ("KG_PRESPAWN_COUNT", "2", "BridgeKernelManager.prespawn_count", 2),
        ("KG_DEFAULT_KERNEL_NAME", "ir", "BridgeKernelManager.default_kernel_name", "ir"),
        ("KG_FORCE_KERNEL_NAME", "ir", "BridgeKernelManager.force_kernel_name", "ir"),
        ("KG_ENV_WHITELIST", "A, B,", "BridgeKernelManager.allowed_envs", ["A", "B"]),
        ("KG_ENV_PROCESS_WHITELIST", "C", "BridgeKernelManager.inherited_envs", ["C"]),
        ("KG_SEED_URI", "a.ipynb", "BridgeKernelManager.seed_uri", "a.ipynb"),
    ],
)
def test_meaning(name: str, value: str, setting: str, meaning: object) -> None:
    owner, trait = setting.split(".")
    assert kg.read({name: value}) == ({owner: {trait: meaning}}, [])


@pytest.mark.parametrize("variable", [v for v in kg.VARIABLES if v.setting], ids=lambda v: v.name)
def test_each_is_the_documented_alias_of_a_setting(variable: kg.Variable) -> None:
    owner, trait = variable.setting.split(".")
    found = CLASSES[owner].class_traits(config=True)[trait]
    # default_kernel_name is jupyter_client's own, and says nothing of the gateway.
    assert variable.name in found.help or trait == "default_kernel_name"


@pytest.mark.parametrize(
    ("name", "value"),
    [("KG_PORT", ""), ("KG_MAX_KERNELS", " "), ("KG_SEED_URI", ""), ("KG_API", "")],
)
def test_empty_is_unset(name: str, value: str) -> None:
    assert kg.read({name: value}) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("KG_PORT", "http"), ("KG_LIST_KERNELS", "perhaps"), ("KG_API", "notebook-http")],
)
def test_nonsense_is_named(name: str, value: str) -> None:
    with pytest.raises(TraitError, match=name):
        kg.read({name: value})


def test_unknown_variables_are_reported() -> None:
    assert kg.read({"KG_CELL_PARSER": "x", "KG_API": "jupyter-websocket", "HOME": "/"}) == (
        {},
        ["KG_CELL_PARSER"],
    )


def test_no_variable_twice() -> None:
    names = [variable.name for variable in kg.VARIABLES]
    assert len(set(names)) == len(names)
