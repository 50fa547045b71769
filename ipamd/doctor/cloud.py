"""EC2 as this node sees it: credentials, the way there, the clock that signatures depend on."""

from __future__ import annotations

from collections.abc import Iterator

from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding, fail, note, ok, warn

# Seconds. EC2 refuses requests whose signature is five minutes off (Signature Version 4); a clock that is wrong by
# less makes times in logs and cooldowns doubtful.
_REFUSED, _DOUBTFUL = 240.0, 5.0


def credentials(facts: Facts) -> Iterator[Finding]:
    check = "credentials"
    if facts.cloud.failed == "identity":
        yield note(check, "not looked for: the metadata service does not say who this node is")
    elif facts.cloud.failed == "credentials":
        yield fail(check, facts.cloud.error, "attach a role to the instance; ipamctl iam-policy prints its policy")
    else:
        yield ok(check, "found")


def ec2(facts: Facts) -> Iterator[Finding]:
    check = "EC2"
    answer = facts.cloud
    if answer.failed in ("identity", "credentials"):
        yield note(check, f"not asked, for want of {'credentials' if answer.identity else 'an identity'}")
    elif answer.failed:
        remedy = "look at the way there: ec2.endpoint, routes, DNS, security groups of a VPC endpoint, proxy, clock"
        yield fail(check, answer.error, remedy)
    else:
        where = f" in {answer.identity.region}" if answer.identity else ""
        yield ok(check, f"answers{where}: this node has {answer.enis} ENI{'s' * (answer.enis != 1)}")


def proxy(facts: Facts) -> Iterator[Finding]:
    check = "proxy"
    proxies = {name: value for name, value in facts.cloud.proxies.items() if name != "NO_PROXY"}
    if not proxies:
        yield ok(check, f"none in the environment of {facts.cloud.environment_of}")
        return
    named = ", ".join(f"{name}={value}" for name, value in proxies.items())
    exempt = facts.cloud.proxies.get("NO_PROXY")
    yield note(
        check,
        f"{named} in the environment of {facts.cloud.environment_of}: EC2 is asked by way of it; "
        f"{f'NO_PROXY={exempt}' if exempt else 'NO_PROXY is not set'}",
        "if it does not let EC2 through, name EC2's endpoint in NO_PROXY",
    )


def clock(facts: Facts) -> Iterator[Finding]:
    check = "clock"
    skew = facts.metadata.skew
    remedy = "chronyc makestep, with AWS's time service: server 169.254.169.123 prefer iburst in /etc/chrony.conf"
    if skew is None:
        yield note(check, "could not tell: the metadata service gave no date")
    elif abs(skew) <= _DOUBTFUL:
        yield ok(check, "agrees with the metadata service's")
    else:
        found = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the metadata service's"
        if abs(skew) > _REFUSED:
            yield fail(check, f"{found}: EC2 refuses requests signed at such a time", remedy)
        else:
            yield warn(check, f"{found}: EC2 refuses requests from five minutes on", remedy)


CHECKS = (credentials, ec2, proxy, clock)
