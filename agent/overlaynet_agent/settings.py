"""Reading the settings again while the agent runs.

What only steers decisions is taken over at once. What the agent was built with, or what moves a host's place
in the network (its name, address, etcd, files), is left as it is and named: it needs a restart. A file that
cannot be used changes nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from overlaynet.config import FIELDS, AgentConfig, ServiceConfig
from overlaynet.model import LocalHost, ServiceOptions

Key = tuple[str, str]

LIVE: frozenset[Key] = frozenset(
    {
        ("node", "zone"),
        ("node", "labels"),
        ("firewall", "resync_s"),
        ("firewall", "masquerade"),
        ("firewall", "vxlan_peers_only"),
        ("service", "node_port_addresses"),
        ("service", "localhost_node_ports"),
        ("service", "masquerade_all"),
        ("service", "local_detect"),
        ("service", "min_sync_s"),
        ("service", "max_sync_s"),
        ("log", "level"),
        ("log", "format"),
    }
)


def changed(old: AgentConfig, new: AgentConfig) -> list[Key]:
    """The settings that differ, in the order of the file."""
    return [key for key in FIELDS if _value(old, key) != _value(new, key)]


def _value(config: AgentConfig, key: Key) -> Any:
    return getattr(getattr(config, key[0]), key[1])


def merged(old: AgentConfig, new: AgentConfig) -> AgentConfig:
    """The old settings with whatever of the new ones can change in a living agent."""
    sections: dict[str, dict[str, Any]] = {}
    for section, name in LIVE:
        sections.setdefault(section, {})[name] = _value(new, (section, name))
    parts: Mapping[str, Any] = {
        section: replace(getattr(old, section), **values) for section, values in sections.items()
    }
    return replace(old, **parts)


def local_host(local: LocalHost, config: AgentConfig) -> LocalHost:
    """This host, with what the settings say of it. Which of its addresses nodePorts are open on is for a look
    at the kernel to say."""
    return replace(
        local,
        services=_services(local.services, config.service),
        zone=config.node.zone,
        labels=config.node.labels,
        masquerade=config.firewall.masquerade,
        vxlan_peers_only=config.firewall.vxlan_peers_only,
    )


def _services(options: ServiceOptions | None, config: ServiceConfig) -> ServiceOptions | None:
    if options is None:
        return None
    return replace(
        options,
        local_detect=config.local_detect,
        masquerade_all=config.masquerade_all,
        localhost_node_ports=config.localhost_node_ports,
    )
