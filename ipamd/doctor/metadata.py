"""The instance metadata service, as the daemon and the pods need it."""

from __future__ import annotations

from collections.abc import Iterator

from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding, fail, note, ok, warn

_MODIFY = "aws ec2 modify-instance-metadata-options --instance-id ID"


def service(facts: Facts) -> Iterator[Finding]:
    check = "metadata service"
    answer, endpoint = facts.metadata, facts.settings.imds.endpoint
    if answer.status == 200:
        yield ok(check, f"{endpoint} answers")
    elif answer.status == 403:
        yield fail(check, f"{endpoint} is disabled for this instance", f"{_MODIFY} --http-endpoint enabled")
    elif answer.status:
        yield fail(check, f"{endpoint} gives no token (HTTP {answer.status})", "see imds.endpoint; is that a proxy?")
    else:
        remedy = f"is this an EC2 instance? ip route get 169.254.169.254; {_MODIFY} --http-endpoint enabled"
        yield fail(check, f"{endpoint} does not answer: {answer.error}", remedy)


def hop_limit(facts: Facts) -> Iterator[Finding]:
    check = "metadata hop limit"
    if facts.settings.host.pod_imds == "block":
        yield ok(check, 'pods are kept from it (host.pod_imds = "block")')
    elif facts.metadata.status != 200:
        yield note(check, "could not tell: the service gave no token")
    elif facts.metadata.ttl is None:
        yield note(check, "could not tell: its packets were not seen", "look: aws ec2 describe-instances, "
                   "MetadataOptions.HttpPutResponseHopLimit")  # fmt: skip
    elif facts.metadata.ttl <= 1:
        remedy = f'{_MODIFY} --http-put-response-hop-limit 2; or keep pods from it: host.pod_imds = "block"'
        yield warn(check, "1: its answer reaches the host and no pod, which then waits for it in vain", remedy)
    else:
        yield ok(check, f"{facts.metadata.ttl}: its answers reach pods")


CHECKS = (service, hop_limit)
