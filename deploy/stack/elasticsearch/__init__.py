"""Elasticsearch: what workers wrote, to be searched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deploy.stack import health
from deploy.stack.elasticsearch.layout import java_home, lay_out
from deploy.stack.install import once
from deploy.stack.server import Launch

_HEAP = "512m"
_LOG = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%c{1.}] %m%n%throwable
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""
_JAVA_OPTIONS = (
    *("-Xss1m", "-XX:+UseSerialGC", "-XX:-OmitStackTraceInFastThrow"),
    # Short runs: the quick compiler only, without which the start takes twice as long.
    "-XX:TieredStopAtLevel=1",
    *("-Djava.awt.headless=true", "-Dlog4j.shutdownHookEnabled=false", "-Dlog4j2.disable.jmx=true"),
    *("-Dio.netty.noUnsafe=true", "-Dio.netty.noKeySetOptimization=true"),
    # Its absence (the library is not published) otherwise turns off every native library, zstd's too.
    "-Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false",
    "--enable-native-access=ALL-UNNAMED",
)


class Elasticsearch:
    """`Server` for one Elasticsearch of one node, without the parts that are published in its distribution only.

    There are no users, no lifecycle management (ILM), no scripts and no ingest pipelines: for development and tests.

    Args:
        options: settings of the node, beside ours or in their place.
    """

    name = "elasticsearch"
    version = "9.5.3"
    ports = ("client", "transport")

    def __init__(self, *, options: Mapping[str, str] = MappingProxyType({})) -> None:
        self._options = options

    def install(self, cache: Path) -> Path:
        """From Maven's central repository, half a minute the first time."""
        return once(cache, self.name, self.version, lambda folder: lay_out(folder, self.version))

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process over `folder/data`."""
        for needed in ("config", "data", "logs", "tmp"):
            (folder / needed).mkdir(exist_ok=True)
        (folder / "config" / "log4j2.properties").write_text(_LOG)
        settings = {
            "path.home": programs,
            "path.data": folder / "data",
            "path.logs": folder / "logs",
            "cluster.name": "distroml-local",
            "node.name": "distroml-local",
            "discovery.type": "single-node",
            "network.host": "127.0.0.1",
            "http.port": ports["client"],
            "transport.port": ports["transport"],
            # A developer's disk that is nearly full must not make indices read-only.
            "cluster.routing.allocation.disk.threshold_enabled": "false",
            **self._options,
        }
        return Launch(
            command=(
                *(str(java_home() / "bin" / "java"), f"-Xms{_HEAP}", f"-Xmx{_HEAP}", *_JAVA_OPTIONS),
                *(f"-Des.path.home={programs}", f"-Djava.io.tmpdir={folder / 'tmp'}"),
                *(
                    "-cp",
                    f"{programs / 'lib'}/*:{programs / 'launcher'}/*",
                    "distroml.local.Start",
                    str(folder / "config"),
                ),
                *(f"{name}={value}" for name, value in settings.items()),
            )
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether its one node has formed a cluster."""
        return health.answers_http(ports["client"], "/_cluster/health")

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where agents ship what workers write, and where it is searched."""
        return {"DISTROML_ELASTICSEARCH": f"http://127.0.0.1:{ports['client']}"}
