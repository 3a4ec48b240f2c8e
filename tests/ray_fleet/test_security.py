"""Fleets with TLS and tokens."""

import pytest
import ray

from mixserve_client import MixClient, Unauthenticated
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.ray_fleet.cluster import Trainer, addresses_of, fleet_of, node_of
from tests.tokens.files import Tokens
from tests.waiting import wait_until


@NEEDS_OPENSSL
def test_tls_and_tokens_hold_for_all_replicas_and_placed_sources(cluster, config, tmp_path):
    host = ray.util.get_node_ip_address()
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("fleet", f"IP:{host}")
    tokens = Tokens(tmp_path / "tokens.yaml", {"reader": ("reader", None)})
    (tmp_path / "token").write_text(tokens["reader"])
    config.write_text(
        config.read_text()
        + f"server: {{tokens: tokens.yaml, tls: {{certificate: {pair.certificate}, key: {pair.key}}}}}\n"
        + f"ray: {{place: {{a: {{tls: {authority.ca}, token_file: token}}}}}}\n"
    )
    fingerprint = node_of(config).mixture.fingerprint
    with fleet_of(config, replicas=2, insecure=False) as fleet:
        options = {"tls": str(authority.ca), "token": tokens["reader"]}
        for address in (fleet.address, f"ray://{fleet.addresses()[0]}"):
            with MixClient.connect(address, **options) as client:
                assert client.mixture().fingerprint == fingerprint
                with Trainer(client, config) as trainer:
                    trainer.read_more(20)
                wait_until(lambda client=client: len(addresses_of(client)) == 2, "the list", 15)
        with MixClient.connect(fleet.address, tls=str(authority.ca)) as client, pytest.raises(Unauthenticated):
            client.mixtures()
