"""Enforces a NetworkPolicy on given pods of an embedded cluster, whose CNI plugin does not know of policies.

As a plugin would: where packets enter the node, after a Service's address has become that of a pod or a host. Answers
pass, packets of the node itself pass, and whatever no rule of the policy allows is counted and dropped.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dev.instance import Instance
from dev.namespace import Namespace

Json = dict[str, Any]
TABLE = "inet everstep_policy"
REFUSED = "refused"


@dataclass(frozen=True)
class Enforced:
    instance: Instance

    def packets(self) -> dict[str, int]:
        """By what allowed them, as in `egress tcp 6443`; REFUSED are those that nothing allows."""
        listing = json.loads(_nft(self.instance, "-j", "list", "table", *TABLE.split()))["nftables"]
        found: dict[str, int] = {}
        for rule in (each["rule"] for each in listing if "rule" in each):
            for counter in (part["counter"] for part in rule["expr"] if "counter" in part):
                found[rule["comment"]] = found.get(rule["comment"], 0) + counter["packets"]
        return found


@contextmanager
def enforced(instance: Instance, policy: Json, addresses: Sequence[str], ports: dict[str, int]) -> Iterator[Enforced]:
    """The policy's spec, on the pods at these addresses, until the block ends. `ports`: the pods' named ports."""
    _nft(instance, "-f", "-", stdin=ruleset(policy, addresses, ports))
    try:
        yield Enforced(instance)
    finally:
        _nft(instance, "delete", "table", *TABLE.split())


def ruleset(policy: Json, addresses: Sequence[str], ports: dict[str, int]) -> str:
    """For nft. Peers may be `ipBlock`s without exceptions; none: everybody."""
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    pods = f"{{ {', '.join(addresses)} }}"
    egress = [line for rule in policy["egress"] for line in _lines("egress", "daddr", rule.get("to"), rule, ports)]
    ingress = [line for rule in policy["ingress"] for line in _lines("ingress", "saddr", rule.get("from"), rule, ports)]
    answers, drop = "ct direction reply accept", f'counter drop comment "{REFUSED}"'
    chains = {
        "egress": [answers, *egress, drop],
        "ingress": [answers, *ingress, drop],
        "to_the_node": ["type filter hook input priority -10;", f"ip saddr {pods} jump egress"],
        "across": [
            "type filter hook forward priority -10;",
            f"ip saddr {pods} jump egress",
            f"ip daddr {pods} jump ingress",
        ],
    }
    body = "\n".join(f"chain {name} {{\n{chr(10).join(lines)}\n}}" for name, lines in chains.items())
    return f"table {TABLE} {{\n{body}\n}}\n"


def _lines(way: str, field: str, peers: Sequence[Json] | None, rule: Json, named: dict[str, int]) -> Iterator[str]:
    blocks = [peer["ipBlock"] for peer in peers or ()]
    assert all(block.keys() == {"cidr"} for block in blocks)
    whom = f"ip {field} {{ {', '.join(block['cidr'] for block in blocks)} }} " if blocks else ""
    for port in rule["ports"]:
        protocol, number = port["protocol"].lower(), port["port"]
        number = number if isinstance(number, int) else named[number]
        yield f'{whom}{protocol} dport {number} counter accept comment "{way} {protocol} {number}"'


def _nft(instance: Instance, *arguments: str, stdin: str | None = None) -> str:
    command = [*Namespace(instance).prefix, "nft", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"nft {' '.join(arguments)}: {done.stderr}"
    return done.stdout
