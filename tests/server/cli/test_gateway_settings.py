import warnings
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from kbridge.server.cli import gateway_settings
from kbridge.server.cli.app import KbridgeApp

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
    assert gateway_settings.read({name: value}) == ({owner: {trait: meaning}}, [])


@pytest.mark.parametrize(
    "variable", [v for v in gateway_settings.VARIABLES if v.setting], ids=lambda v: v.name
)
def test_each_is_the_documented_alias_of_a_setting(variable: gateway_settings.Setting) -> None:
    owner, trait = variable.setting.split(".")
    found = CLASSES[owner].class_traits(config=True)[trait]
    # default_kernel_name is jupyter_client's own, and says nothing of the gateway.
    assert variable.name in found.help or trait == "default_kernel_name"


@pytest.mark.parametrize(
    ("name", "value"),
    [("KG_PORT", ""), ("KG_MAX_KERNELS", " "), ("KG_SEED_URI", ""), ("KG_API", "")],
)
def test_an_empty_variable_counts_as_unset(name: str, value: str) -> None:
    assert gateway_settings.read({name: value}) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("KG_PORT", "http"), ("KG_LIST_KERNELS", "perhaps"), ("KG_API", "notebook-http")],
)
def test_invalid_values_of_variables_are_named(name: str, value: str) -> None:
    with pytest.raises(TraitError, match=name):
        gateway_settings.read({name: value})


def test_unknown_variables_are_reported() -> None:
    assert gateway_settings.read(
        {"KG_NOSUCH": "x", "KG_API": "jupyter-websocket", "HOME": "/"}
    ) == (
        {},
        ["KG_NOSUCH"],
    )


def test_each_variable_has_one_row() -> None:
    names = [variable.name for variable in gateway_settings.VARIABLES]
    assert len(set(names)) == len(names)


# -- traits ---------------------------------------------------------------------------------


def gateway_classes() -> list[Any]:
    """The classes of the installed gateway and of its kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kernel_gateway.gatewayapp import KernelGatewayApp
        from kernel_gateway.services.kernels.manager import SeedingMappingKernelManager
    kernels = [
        c for c in SeedingMappingKernelManager.__mro__ if c.__name__ in gateway_settings.SECTIONS
    ]
    return [KernelGatewayApp, *KernelGatewayApp.classes, *kernels]


def test_every_trait_of_the_gateway_has_a_row() -> None:
    """This test fails if a new release adds or removes a setting."""
    there = {
        f"{cls.__name__}.{trait}"
        for cls in gateway_classes()
        for trait in cls.class_trait_names(config=True)
    }
    rows = {setting.trait for setting in gateway_settings.SETTINGS}
    # MappingKernelManager alone does not have what its asynchronous subclass adds.
    assert rows - there == {"MappingKernelManager.use_pending_kernels"}
    assert there - rows == set()


def test_every_variable_of_the_gateway_has_a_row() -> None:
    there = {
        value
        for cls in gateway_classes()
        for name, value in vars(cls).items()
        if name.endswith("_env") and isinstance(value, str)
    }
    assert len(there) > 25
    assert {variable.name for variable in gateway_settings.VARIABLES} == there


@pytest.mark.parametrize("setting", gateway_settings.SETTINGS, ids=lambda s: s.trait)
def test_each_row_leads_to_a_setting(setting: gateway_settings.Setting) -> None:
    if setting.setting:
        owner, trait = setting.setting.split(".")
        assert trait in CLASSES[owner].class_trait_names(config=True)


@pytest.mark.parametrize("section", ["ZMQChannelsWebsocketConnection", "MultiKernelManager"])
def test_classes_of_the_same_name_have_the_gateways_traits(section: str) -> None:
    """Those of Jupyter Server and jupyter_client count in the gateway, too, under their names."""
    from jupyter_client.multikernelmanager import MultiKernelManager
    from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

    theirs: Any = {c.__name__: c for c in (MultiKernelManager, ZMQChannelsWebsocketConnection)}
    [ours] = [base for cls in CLASSES.values() for base in cls.__mro__ if base.__name__ == section][
        :1
    ]
    assert set(theirs[section].class_trait_names(config=True)) <= set(
        ours.class_trait_names(config=True)
    )


@pytest.mark.parametrize(
    ("trait", "value", "setting", "meaning"),
    [
        ("KernelGatewayApp.auth_token", "t", "KbridgeApp.token", "t"),
        ("KernelGatewayApp.auth_token", "", "KbridgeApp.token", ""),
        ("KernelGatewayApp.port", 9000, "KbridgeApp.port", 9000),
        ("KernelGatewayApp.trust_xheaders", 1, "KbridgeApp.trust_xheaders", True),
        (
            "KernelGatewayApp.env_process_whitelist",
            ["A"],
            "BridgeKernelManager.inherited_envs",
            ["A"],
        ),
        ("JupyterWebsocketPersonality.list_kernels", True, "KbridgeApp.list_kernels", True),
        (
            "JupyterWebsocketPersonality.env_whitelist",
            ["A"],
            "BridgeKernelManager.allowed_envs",
            ["A"],
        ),
        ("MappingKernelManager.cull_idle_timeout", 9, "BridgeKernelManager.cull_idle_timeout", 9),
    ],
)
def test_traits_get_their_names_here(trait: str, value: Any, setting: str, meaning: Any) -> None:
    section, name = trait.split(".")
    owner, ours = setting.split(".")
    assert gateway_settings.translate(Config({section: {name: value}})) == Config(
        {owner: {ours: meaning}}
    )


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        ("KernelGatewayApp.max_kernels", None),
        ("KernelGatewayApp.default_kernel_name", ""),
        ("KernelGatewayApp.api", "jupyter-websocket"),
        ("KernelGatewayApp.authorizer_class", "jupyter_server.auth.authorizer.AllowAllAuthorizer"),
        ("NotebookHTTPPersonality.static_path", "/srv"),
    ],
)
def test_traits_that_change_nothing(trait: str, value: Any) -> None:
    section, name = trait.split(".")
    assert gateway_settings.translate(Config({section: {name: value}})) == Config()


@pytest.mark.parametrize(
    ("trait", "value", "says"),
    [
        ("KernelGatewayApp.api", "kernel_gateway.notebook_http", "no notebook-http mode"),
        ("KernelGatewayApp.api", "my_gateway.api", "KernelGatewayApp.api cannot be"),
        ("KernelGatewayApp.authorizer_class", "mine.Authorizer", "authorizer_class cannot be"),
        ("KernelGatewayApp.auth_tokn", "secret", "did you mean KernelGatewayApp.auth_token"),
        ("MappingKernelManager.nosuch", 1, "has no MappingKernelManager.nosuch"),
    ],
)
def test_traits_that_are_refused(trait: str, value: Any, says: str) -> None:
    section, name = trait.split(".")
    with pytest.raises(TraitError, match=says) as refused:
        gateway_settings.translate(Config({section: {name: value}}))
    assert "secret" not in str(refused.value)


def test_kbridges_name_has_precedence_over_the_gateways() -> None:
    config = Config({"KernelGatewayApp": {"port": 1}, "KbridgeApp": {"port": 2}})
    assert gateway_settings.translate(config) == Config({"KbridgeApp": {"port": 2}})
