"""The credentials of this instance's role, from the metadata service by ipamd's own client.

botocore's own way there goes by HTTP_PROXY, and swallows why there are none: a missing role, a trust policy that EC2
may not use. The document: "Retrieve security credentials from instance metadata" in the Amazon EC2 User Guide.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_pascal

from ipamd.cloud.imds import Imds, imds_error
from ipamd.cloud.port import CloudError
from ipamd.pool.model import CloudErrorKind
from ipamd.pool.quoting import cut, quoted

DISABLED = "AWS_EC2_METADATA_DISABLED"
_PATH = "iam/security-credentials/"

# A set that has ended, or is about to, is taken for good so much longer: the metadata service may be late with the
# next one, and EC2 is the one to refuse it.
EXTENSION = timedelta(minutes=20)

_NO_ROLE = (
    "this instance has no role: give it one (an instance profile; aws ec2 associate-iam-instance-profile), or ipamd "
    "other credentials"
)
_REMEDIES = {
    "AssumeRoleUnauthorizedAccess": "EC2 can't assume the role: check its trust policy, which must name the service "
    "ec2.amazonaws.com, and whether the role is still the one that the instance profile names"
}

Printable = Annotated[str, Field(pattern=r"^[!-~]+$")]


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal)

    access_key_id: Printable
    secret_access_key: Printable
    token: Printable
    expiration: AwareDatetime


class _Refusal(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal)

    code: str
    message: str = ""


class RoleCredentials:
    """What botocore calls an `iam_role_fetcher`."""

    def __init__(self, imds: Imds) -> None:
        self._imds = imds

    async def retrieve_iam_role_credentials(self) -> dict[str, str]:
        """In botocore's words. Raises `CloudError` with action "IMDS"."""
        if os.environ.get(DISABLED, "").lower() == "true":
            message = f"{DISABLED}=true keeps ipamd from this instance's role: unset it"
            raise imds_error(CloudErrorKind.NOT_AUTHORIZED, "MetadataDisabled", message)
        role = await self._role()
        text = await self._imds.read(_PATH + role)
        return {"role_name": role, **_parsed(role, text)}

    async def _role(self) -> str:
        try:
            name = (await self._imds.read(_PATH)).splitlines()[0].strip()
        except CloudError as error:
            if error.failure.kind is CloudErrorKind.NOT_FOUND:
                raise imds_error(CloudErrorKind.NOT_AUTHORIZED, "NoRole", _NO_ROLE) from error
            raise
        # "Names and paths" of IAM: letters, digits and these, at most 64.
        if len(name) > 64 or not all(character.isalnum() or character in "+=,.@_-" for character in name):
            raise _unreadable(f"the name of the role is {quoted(name)}")
        return name


def _parsed(role: str, text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _unreadable(f"those of {role} are no JSON object: {quoted(text)}")
    try:
        document = _Document.model_validate(found)
    except ValidationError as error:
        _raise_refusal(role, found)
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _unreadable(f"{'.'.join(map(str, first['loc'])) or 'the document'} of {role}: {first['msg']}") from None
    expiration = max(document.expiration.astimezone(UTC), datetime.now(UTC) + EXTENSION)
    return {
        "access_key": document.access_key_id,
        "secret_key": document.secret_access_key,
        "token": document.token,
        "expiry_time": expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _raise_refusal(role: str, found: object) -> None:
    """A document that says why there are no credentials."""
    try:
        refusal = _Refusal.model_validate(found)
    except ValidationError:
        return
    if refusal.code == "Success":
        return
    remedy = _REMEDIES.get(refusal.code, "check the role of this instance")
    words = (
        f"no credentials of {role}: {cut(refusal.code, 80)}: {cut(refusal.message, 400) or 'no message'}; {remedy}"
    )
    raise imds_error(CloudErrorKind.NOT_AUTHORIZED, "NoRoleCredentials", words)


def _unreadable(what: str) -> CloudError:
    message = f"the metadata service answers credentials that can't be read: {what}; check imds.endpoint"
    return imds_error(CloudErrorKind.TRANSIENT, "UnreadableCredentials", message)
