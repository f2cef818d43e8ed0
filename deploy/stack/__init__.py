"""Real servers as ordinary processes on loopback: installed, started, waited for and ended; standard library only."""

from deploy.stack.running import Running, running
from deploy.stack.server import Launch, Server, StackError

__all__ = ["Launch", "Running", "Server", "StackError", "running"]
