"""The last line of every service's `__main__`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from distroml.eventstore import EventStoreError
from distroml.objectstore import ObjectStoreError
from distroml.observability import logger
from distroml.rpc.settings import SettingsError
from distroml.statestore import StateStoreError

log = logger(__name__)


def launch(serve: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
    """Run a service to its end and exit: 0 after a drain, 2 where it or its store cannot work, 1 where it crashed.

    What keeps it from starting is said in one line per problem on standard error.
    """
    try:
        asyncio.run(serve())
    except SettingsError as error:
        for problem in error.problems:
            print(f"cannot start: {problem}", file=sys.stderr)
        sys.exit(2)
    except (StateStoreError, EventStoreError, ObjectStoreError) as error:
        # Their texts say which file, what is wrong and what to do; a traceback would only bury that.
        print(f"cannot go on: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        log.exception("the service crashed")
        sys.exit(1)
    sys.exit(0)
