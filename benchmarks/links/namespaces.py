"""Hosts on one machine: a network namespace each, joined to one bridge by cables whose rate can be set."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# The bucket of the limiter. Larger ones let small messages through free, smaller ones slow bulk down.
_BURST_KB = {1000: 64}
_BURST_KB_DEFAULT = 16


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace, and its address on the cable."""

    name: str
    address: str
    interface: str

    def command(self, words: Sequence[str]) -> list[str]:
        """`words`, to be run in this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def environment(self) -> dict[str, str]:
        """What Gloo needs to use the cable and not the loopback."""
        return {**os.environ, "GLOO_SOCKET_IFNAME": self.interface, "TP_SOCKET_IFNAME": self.interface}

    def limit(self, mbit: float | None) -> None:
        """Let at most `mbit` Mbit/s out of this host from now on; None: as fast as the machine can.

        One rate follows the other without a moment of full speed, so it may change while ranks talk.
        """
        words = ("ip", "netns", "exec", self.name, "tc", "qdisc")
        if mbit is None:
            subprocess.run([*words, "del", "dev", self.interface, "root"], capture_output=True, timeout=20, check=False)
            return
        burst_kb = _BURST_KB.get(int(mbit), _BURST_KB_DEFAULT)
        shaper = ("tbf", "rate", f"{mbit:g}mbit", "burst", f"{burst_kb}kb", "latency", "400ms")
        _run(*words, "replace", "dev", self.interface, "root", *shaper)

    def sent_bytes(self) -> int:
        """Bytes that left this host over the cable so far, headers included."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        done = subprocess.run(self.command(["cat", path]), capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts on one bridge; gone at the end.

    Raises:
        RuntimeError: not root, or `ip` or `tc` is missing; says what to do.
    """
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        raise RuntimeError("slow links need root and iproute2 (Debian: apt install iproute2)")
    # Another run's hosts, of another clone or container, must never be taken for ours.
    tag = f"dml{uuid.uuid4().hex[:8]}"
    bridge = f"{tag}br"
    made: list[str] = []
    found: list[Host] = []
    try:
        # The bridge lives in a namespace of its own, so that nothing of the machine's own network changes.
        _run("ip", "netns", "add", bridge)
        made.append(bridge)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        for number in range(count):
            host = Host(f"{tag}h{number}", f"10.231.0.{number + 1}", "eth0")
            _run("ip", "netns", "add", host.name)
            made.append(host.name)
            found.append(host)
            cable = f"cable{number}"
            peer = ("peer", "name", "eth0", "netns", host.name)
            _run("ip", "link", "add", cable, "netns", bridge, "type", "veth", *peer)
            _run("ip", "-n", bridge, "link", "set", cable, "master", "br0", "up")
            _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _run("ip", "-n", host.name, "link", "set", "eth0", "up")
            _run("ip", "-n", host.name, "link", "set", "lo", "up")
        yield found
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)
