"""Layer 2: tunnels to kernels behind ssh, through OpenSSH's client.

This package is below `kbridge.connect`, which offers `Tunnel` and `tunnel_to_kernel` under the
names of `jupyter_client.connect` and therefore imports it.

Internal: these modules may change in any release.
"""
