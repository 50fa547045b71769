"""Whose credentials a call goes with: found in botocore's places, and found anew when EC2 refuses them.

botocore's providers read files, run programs and ask services; what they raise is anybody's guess. It is met here,
before a call is sent, so that such a failure is never one of unknown outcome. A set that is still good is used while
the next one is looked for: EC2 alone says when it is not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import structlog
from aiobotocore.credentials import (  # type: ignore[import-untyped]
    AioCredentials,
    create_credential_resolver,
)
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from aiobotocore.utils import AioContainerMetadataFetcher  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    ClientError,
    NoAuthTokenError,
    PartialCredentialsError,
    UnauthorizedSSOTokenError,
)

from ipamd.cloud.imds import Imds
from ipamd.cloud.port import CloudError
from ipamd.cloud.role import RoleCredentials
from ipamd.cloud.wire import AgentSession
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.pool.quoting import cut
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.credentials")

# Seconds that a call waits for a provider, which goes on after that: the next call finds what it brought.
PATIENCE = 30.0

# Seconds before their end from which on the next ones are looked for: botocore's own figure.
AHEAD = 15 * 60

# Seconds between looks whether there are others, when these are good and do not permit something.
LOOK_AGAIN = 60.0

# What EC2 says of credentials that it does not take.
REFUSED = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "MissingAuthenticationToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
NOT_RENEWED = "credentials.not_renewed"
DENIED = "UnauthorizedOperation"

_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_PROFILE = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
# By botocore's name of the provider: the variables that lead to it. The last ones hold secrets.
_VARIABLES = {
    "env": ("AWS_CREDENTIAL_EXPIRATION", *_PAIR, "AWS_SESSION_TOKEN"),
    "container-role": (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    ),
    "assume-role-with-web-identity": ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", *_PROFILE),
    "iam-role": (),
}
_SECRET = frozenset({*_PAIR, "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"})

# botocore logs each failed renewal with a traceback. It is reported here, in one line.
logging.getLogger("aiobotocore.credentials").setLevel(logging.ERROR)


class Frozen(NamedTuple):
    """One set, in botocore's words."""

    access_key: str
    secret_key: str
    token: str | None
    account_id: str | None = None


class Credentials(AioCredentials):  # type: ignore[misc]
    """botocore's credentials of one client, and its component credential_provider. `session` makes the first search,
    new ones from `new_session` all later ones, because a session remembers the files that it read."""

    def __init__(
        self,
        session: AioSession,
        new_session: Callable[[], AioSession],
        imds: Imds,
        region: str,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__(access_key="", secret_key="", method="ipamd")
        self._session: AioSession | None = session
        self._new_session = new_session
        self._role = RoleCredentials(imds)
        self._region = region
        self._conditions = conditions
        self._found: Any = None  # botocore's, which renew themselves
        self._frozen: Frozen | None = None
        self._refused = False
        self._outdated = True
        self._looked_at = 0.0
        self._search: asyncio.Task[None] | None = None

    # What botocore asks

    async def load_credentials(self) -> Credentials:
        return self

    async def get_frozen_credentials(self) -> Frozen | None:
        return self._frozen

    # What a call asks

    @property
    def key_in_use(self) -> str:
        """Of the set that calls go with now; empty while there is none."""
        return self._frozen.access_key if self._frozen else ""

    async def ready(self) -> None:
        """Return with a set that is good for a call, as far as is known. Raises `CloudError`."""
        if not self._usable:
            await self._wait()
        elif self._outdated or self._ends_within(AHEAD):
            self._begin()

    def judged(self, access_key: str, code: str) -> None:
        """EC2 has answered this error to a call with this key."""
        if access_key != self.key_in_use:
            return
        if code in REFUSED:
            self._refused = self._outdated = True
        elif code == DENIED and time.monotonic() >= self._looked_at + LOOK_AGAIN:
            # The instance may have got another role; the old one's credentials stay good for hours.
            self._outdated = True

    async def close(self) -> None:
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)

    @property
    def _usable(self) -> bool:
        return self._frozen is not None and not self._refused and not self._ends_within(0)

    def _ends_within(self, seconds: int) -> bool:
        ends = getattr(self._found, "refresh_needed", None)
        return ends is not None and bool(ends(refresh_in=seconds))

    def _begin(self) -> asyncio.Task[None]:
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._look())
            self._search.add_done_callback(self._tell)
        return self._search

    def _tell(self, search: asyncio.Task[None]) -> None:
        """A call that waits for the search raises its error; while the present set is good, none does."""
        error = None if search.cancelled() else search.exception()
        if error is not None and not self._usable:
            log.debug("credentials.not_found", error=str(error))
        if self._conditions is None or search.cancelled():
            return
        if error is None:
            self._conditions.end(NOT_RENEWED)
        elif self._usable:
            self._conditions.begin(
                NOT_RENEWED, f"EC2 still takes the credentials, but there are no next ones: {error}."
            )

    async def _wait(self) -> None:
        search = self._begin()
        done, _ = await asyncio.wait({search}, timeout=PATIENCE)
        if not done:
            message = f"no credentials within {PATIENCE:g} s{hints()}"
            raise CloudError(CloudFailure(CloudErrorKind.TRANSIENT, "Credentials", "Timeout", message))
        search.result()

    async def _look(self) -> None:
        """Raises `CloudError`."""
        self._looked_at = time.monotonic()
        method = ""
        try:
            found = self._found
            if found is None or self._outdated:
                found, method = await self._first()
            method = method or found.method
            frozen = _checked(await found.get_frozen_credentials())
        except CloudError:
            raise
        except Exception as error:  # any provider's, and its libraries'
            raise _failed(method, error) from error
        self._found, self._frozen = found, frozen
        self._outdated = self._refused = False

    async def _first(self) -> tuple[Any, str]:
        """botocore's credentials of the first provider that has some, and its name."""
        session = self._session or await asyncio.to_thread(self._new_session)
        self._session = None
        try:
            chain = create_credential_resolver(session, region_name=self._region)
        except Exception as error:
            raise _failed("", error) from error
        # The same provider serves profiles with credential_source = Ec2InstanceMetadata.
        chain.get_provider("iam-role")._role_fetcher = self._role
        agent = AioContainerMetadataFetcher(AgentSession(timeout=AioContainerMetadataFetcher.TIMEOUT_SECONDS))
        chain.get_provider("container-role")._fetcher = agent
        for provider in chain.providers:
            try:
                found = await provider.load()
            except CloudError:
                raise
            except Exception as error:
                raise _failed(provider.METHOD, error) from error
            if found is not None:
                return found, provider.METHOD
        raise AssertionError("the last provider is the role's, which has some or raises")


def _checked(found: Any) -> Frozen:
    """Raises ValueError for what can't be sent."""
    token = found.token or None
    for name, part in (("access key", found.access_key), ("secret key", found.secret_key), ("token", token or "-")):
        if not (isinstance(part, str) and part and part.isascii() and part.isprintable()):
            raise ValueError(f"the {name} is no line of text")
    return Frozen(found.access_key, found.secret_key, token, found.account_id)


def _failed(method: str, error: Exception) -> CloudError:
    if isinstance(error, ClientError):
        described = error.response.get("Error", {})
        code, words, kind = str(described.get("Code", "")), str(error), CloudErrorKind.NOT_AUTHORIZED
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400) >= 500:
            kind = CloudErrorKind.TRANSIENT
    else:
        code, kind = type(error).__name__, CloudErrorKind.TRANSIENT
        words = f"{code}: {error}" if str(error) else code
        # RuntimeError is botocore's word for renewed credentials that have expired already.
        if isinstance(error, PartialCredentialsError | UnauthorizedSSOTokenError | NoAuthTokenError | RuntimeError):
            kind = CloudErrorKind.NOT_AUTHORIZED
    message = f"can't get credentials{_source(method)}: {cut(words, 400)}{hints()}"
    return CloudError(CloudFailure(kind, "Credentials", code, message))


def _source(method: str) -> str:
    if not method:
        return ""
    named = variables(method)
    return f" from {method} ({named})" if named else f" from {method}"


def variables(method: str = "") -> str:
    """Those that are set and lead to this provider, with their values unless they are secret. By default: those that
    lead to a profile."""
    return ", ".join(
        name if name in _SECRET else f"{name}={cut(os.environ[name], 400)}"
        for name in _VARIABLES.get(method, _PROFILE)
        if name in os.environ
    )


def hints() -> str:
    """What in the environment looks like a slip, as the end of a sentence."""
    given = [name for name in _PAIR if os.environ.get(name)]
    found = []
    if len(given) == 1:
        found.append(f"only {given[0]} of the pair {_PAIR[0]} and {_PAIR[1]} is set")
    names = dict.fromkeys(name for names in _VARIABLES.values() for name in names)
    empty = [name for name in names if os.environ.get(name) == ""]
    if empty:
        found.append(
            f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} set and empty: unset what is not meant"
        )
    return "".join(f"; {hint}" for hint in found)


_ADVICE = "Mend where ipamd gets its credentials from, as the message says: the instance's role, as a rule."


def for_call(error: CloudError, action: str) -> CloudError:
    """The same failure as one of this call, which was not sent."""
    failure = error.failure
    message = failure.message
    if failure.action == "IMDS":
        message += hints()
    # What the metadata service did not find, or throttled, says nothing of that kind about EC2.
    denied = failure.kind is CloudErrorKind.NOT_AUTHORIZED
    kind = CloudErrorKind.NOT_AUTHORIZED if denied else CloudErrorKind.TRANSIENT
    return CloudError(replace(failure, kind=kind, action=action, message=message, advice=_ADVICE))
