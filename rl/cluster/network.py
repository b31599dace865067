"""Under which address, and over which network device, do actors on this node reach those on others?"""

import os
import socket

import psutil
import ray

from rl.cluster.address import ClusterError


def meeting_point() -> str:
    """`host:port` on this node, where processes of other nodes can meet. Nothing listens there yet."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choose_network_interface(asked: str | None) -> None:
    """Let process groups of this process use the network device `asked`, or the one with the node's address.

    By themselves they use the address that the machine's own name has, which may be reachable from this machine only.
    Raises `ClusterError` if there is no such device.
    """
    devices = psutil.net_if_addrs()
    if asked is not None and asked not in devices:
        raise ClusterError(
            f"ray.network_interface: there is no network device {asked} on {socket.gethostname()}; it has"
            f" {', '.join(sorted(devices))}"
        )
    here = ray.util.get_node_ip_address()
    own = next((name for name, addresses in devices.items() if any(one.address == here for one in addresses)), None)
    if device := asked or own:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = device
