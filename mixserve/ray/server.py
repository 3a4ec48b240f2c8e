"""A configuration -> a server in this process, as `mixserve serve` makes it, at a free port of the node."""

import logging
from pathlib import Path

from mixserve.address import join_address
from mixserve.config import Config
from mixserve.log_lines import JsonFormatter, TextFormatter
from mixserve.reach import reachable
from mixserve.server_files import choose_folder, compiling, token_file
from mixserve.serving import MixServer

_logger = logging.getLogger("mixserve")


def open_server(
    config: Config, file: Path, host: str, *, insecure: bool, placement: str | None
) -> tuple[MixServer, dict[str, str]]:
    """Serve `config`, whose relative paths begin in the folder of `file`, at `host`. Ports are free ones, also those of
    health and metrics if the configuration has them: several replicas may be on one node.

    Returns the server, and the fingerprints of its mixtures.

    Raises ConfigError and OSError.
    """
    from mixserve.build import build_nodes
    from mixserve.located import starting
    from mixserve.serving import serve

    given, address = config.server, join_address(host, 0)
    tokens = token_file(config, file)
    reach = reachable(
        given,
        file,
        insecure=insecure,
        health_port=None if given.health_port is None else 0,
        metrics_port=None if given.metrics_port is None else 0,
        bulk=None,
        bulk_port=0 if given.bulk else None,
    )
    reach.check(address, has_tokens=tokens is not None)
    memory = choose_folder("shared_memory", None, given.shared_memory, file)
    with compiling(config, choose_folder("compilation_cache", None, given.compilation_cache, file)):
        nodes = build_nodes(config, file, placement=placement)
        _logger.info("warming up: %s", ", ".join(f"{name} ({len(node)} records)" for name, node in nodes.items()))
        with starting(file):
            server = serve(
                nodes,
                address,
                shared_memory=memory,
                session_ttl_s=given.session_ttl_s,
                tokens=tokens,
                tls=reach.tls,
                insecure=reach.insecure,
                health_port=reach.health_port,
                health_host=reach.health_host,
                metrics_port=reach.metrics_port,
                metrics_host=reach.metrics_host,
                bulk=reach.bulk,
                bulk_port=reach.bulk_port,
                limits=given.limits,
                zone=given.zone,
            )
    return server, {name: node.mixture.fingerprint for name, node in nodes.items()}


def write_log(config: Config) -> None:
    """Write the log of this process as the configuration says: Ray keeps it in the files of the actor."""
    is_json = config.server.log_format == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter())
    root, level = logging.getLogger(), logging.getLevelNamesMapping()[config.server.log_level.upper()]
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    _logger.setLevel(level)
    logging.getLogger("mixserve.audit").setLevel(logging.INFO)
    logging.getLogger("mixserve_client").setLevel(max(level, logging.WARNING))
