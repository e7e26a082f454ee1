"""The network of a full instance: a link from the host into its namespace, a bridge for pods, two routes on the host.

The host reaches pods, Services, the API server and the S3 server through the link. There is no way out from the pods
beyond the host, so no rule in the host's firewall is needed.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterator

from dev.instance import Instance, InstanceError, Network
from dev.namespace import Namespace

BRIDGE = "pods0"
UPLINK = "uplink"
INSIDE = f"""
set -e
ip link set lo up
ip addr add "$LINK/30" dev {UPLINK}
ip link set {UPLINK} up
ip route add default via "$HOST"
ip link add {BRIDGE} type bridge
ip addr add "$NODE/24" dev {BRIDGE}
ip link set {BRIDGE} up
echo 1 >/proc/sys/net/ipv4/ip_forward
"""


def free_slots() -> Iterator[int]:
    """The slots that no other instance has and whose addresses the host does not route elsewhere, in order.

    The caller holds a lock until `create` has made the interface that marks the slot as taken.
    """
    links = {link["ifname"] for link in json.loads(ip("-json", "link", "show"))}
    routes = json.loads(ip("-json", "-4", "route", "show", "table", "all"))
    taken = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    for slot in range(256):
        network = Network(slot)
        own = [ipaddress.IPv4Network(cidr) for cidr in (network.pod_subnet, network.service_range)]
        own.append(ipaddress.IPv4Network(f"{network.host_address}/30", strict=False))
        if network.interface not in links and not any(each.subnet_of(mine) for each in taken for mine in own):
            yield slot


def create(network: Network, namespace: Namespace, holder: int) -> None:
    """Make the link, which says whose it is, the bridge and the routes."""
    ip("link", "add", network.interface, "type", "veth", "peer", "name", UPLINK, "netns", str(holder))
    ip("link", "set", network.interface, "alias", owner(namespace.instance))
    ip("addr", "add", f"{network.host_address}/30", "dev", network.interface)
    ip("link", "set", network.interface, "up")
    addresses = {"LINK": network.link_address, "HOST": network.host_address, "NODE": network.node_address}
    namespace.run(INSIDE, addresses)
    for destination in (network.pod_subnet, network.service_range):
        ip("route", "add", destination, "via", network.link_address, "dev", network.interface)


def remove(instance: Instance) -> None:
    """Remove the link, if it is this instance's still; its routes go with it, what is inside with the namespace."""
    interface = instance.network.interface
    links = json.loads(ip("-json", "link", "show"))
    if any(link["ifname"] == interface and link.get("ifalias") == owner(instance) for link in links):
        subprocess.run(["ip", "link", "delete", interface], capture_output=True)  # it may have gone with the namespace


def owner(instance: Instance) -> str:
    """The state directory: another cache on this machine may have an instance of the same name."""
    return f"everstep {instance.state}"[-255:]


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise InstanceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
