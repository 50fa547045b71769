"""What a test cluster is made of: its manifests, its nodes' files, its certificates."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.kubernetes import images, node_files
from tests.kubernetes.certificates import Authority
from tests.kubernetes.cluster import DAEMONSET, MANIFESTS, daemonset
from tests.kubernetes.control_plane import DNS_SERVICE


def test_the_daemonset_is_the_published_one_but_for_ec2() -> None:
    published = list(yaml.safe_load_all(DAEMONSET.read_text()))
    tried = list(yaml.safe_load_all(daemonset("http://198.51.100.2")))
    settings = []
    for documents in (published, tried):
        [config] = [document for document in documents if document["kind"] == "ConfigMap"]
        settings.append(tomllib.loads(config["data"].pop("config.toml")))
    assert tried == published
    before, after = settings
    assert after.pop("ec2") == {
        **before.pop("ec2"),
        "endpoint": "http://198.51.100.2",
        "check_permissions": False,
    }
    assert after == before


def test_dns_has_the_image_and_the_address_that_the_cluster_has() -> None:
    documents = list(yaml.safe_load_all((MANIFESTS / "coredns.yaml").read_text()))
    by_kind = {document["kind"]: document for document in documents}
    [container] = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == images.reference("coredns")
    assert by_kind["Service"]["spec"]["clusterIP"] == DNS_SERVICE


def test_a_kubelets_pods_have_a_parent_of_their_own() -> None:
    made = yaml.safe_load(node_files.kubelet("/t1-w1", 27))
    assert (made["cgroupRoot"], made["maxPods"], made["clusterDNS"]) == ("/t1-w1", 27, [DNS_SERVICE])
    assert not made["volumePluginDir"].startswith("/usr")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("kubernetes")


def test_a_client_is_a_user_of_groups(authority: Authority) -> None:
    config = json.loads(authority.kubeconfig("https://10.0.0.4:6443", "system:node:w1", ["system:nodes"]))
    [user], [cluster] = config["users"], config["clusters"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(user["user"]["client-certificate-data"]))
    names = [(part.oid, part.value) for part in certificate.subject]
    assert names == [(NameOID.ORGANIZATION_NAME, "system:nodes"), (NameOID.COMMON_NAME, "system:node:w1")]
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = x509.load_pem_x509_certificate(base64.b64decode(cluster["cluster"]["certificate-authority-data"]))
    certificate.verify_directly_issued_by(issuer)
    key = serialization.load_pem_private_key(base64.b64decode(user["user"]["client-key-data"]), None)
    assert key.public_key() == certificate.public_key()


def test_a_server_has_names_addresses_and_a_secret_key(authority: Authority, tmp_path: Path) -> None:
    authority.issue("kube-apiserver", hosts=["kubernetes", "172.20.0.1"]).write(tmp_path / "apiserver")
    certificate = x509.load_pem_x509_certificate((tmp_path / "apiserver.crt").read_bytes())
    hosts = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["kubernetes"]
    assert hosts.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("172.20.0.1")]
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc
    assert (tmp_path / "apiserver.key").stat().st_mode & 0o777 == 0o600
