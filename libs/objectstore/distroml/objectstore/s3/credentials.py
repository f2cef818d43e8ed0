"""Credentials from where every S3 client looks for them; they are never logged, and no message holds them."""

from __future__ import annotations

import configparser
import time

from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    EnvAWSProvider,
    EnvMinioProvider,
    IamAwsProvider,
    MinioClientConfigProvider,
    Provider,
)

from distroml.objectstore.port import ObjectStoreRefused

_KEPT_S = 30.0


class UsualCredentials(Provider):
    """The first that is found: `AWS_*`, `MINIO_*`, `~/.aws/credentials`, `~/.mc/config.json`, the machine's role.

    Looked up again every half minute, for roles' expire and files are rewritten.
    """

    def __init__(self, *, ask_for_role: bool) -> None:
        self._providers: list[Provider] = [
            EnvAWSProvider(),
            EnvMinioProvider(),
            AWSConfigProvider(),
            MinioClientConfigProvider(),
        ]
        if ask_for_role:
            self._providers.append(IamAwsProvider())
        self._found: tuple[float, Credentials] | None = None

    def retrieve(self) -> Credentials:
        """The credentials; raises `ObjectStoreRefused` where nobody has any."""
        found = self._found
        if found is None or time.monotonic() - found[0] > _KEPT_S or found[1].is_expired():
            self._found = found = time.monotonic(), self._look_up()
        return found[1]

    def _look_up(self) -> Credentials:
        malformed = ""
        for provider in self._providers:
            try:
                return provider.retrieve()
            except ValueError:  # none there
                continue
            except configparser.Error as error:
                # Its text has the line in it that was not understood, which may be a key.
                malformed = f"; the credentials file is malformed ({type(error).__name__})"
        raise ObjectStoreRefused(
            f"there are no S3 credentials{malformed}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them "
            "into ~/.aws/credentials (AWS_PROFILE names the profile)"
        )
