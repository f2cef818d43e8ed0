"""Jaeger 2 with its traces in memory: takes OTLP and Jaeger's old Thrift, answers queries over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from deploy.stack import health
from deploy.stack.install import go_build_pinned
from deploy.stack.server import Launch

# Jaeger 2.13.0 was released from the Go module of this version.
_MODULE = "github.com/jaegertracing/jaeger@v1.76.0"
_MAX_TRACES = 100_000


class Jaeger:
    """`Server` for one process that collects, keeps and shows traces; they are gone when it ends."""

    name = "jaeger"
    version = "2.13.0"
    ports = ("query", "otlp_grpc", "otlp_http", "thrift_http", "thrift_udp", "query_grpc", "health")

    def install(self, cache: Path) -> Path:
        """Built from source, 9 minutes the first time; its page is a placeholder, as the module holds no assets."""
        said = f"-X github.com/jaegertracing/jaeger/internal/version.latestVersion=v{self.version}"
        return go_build_pinned(cache, self.name, self.version, _MODULE, "cmd/jaeger", flags=said)

    def start(self, programs: Path, folder: Path, ports: Mapping[str, int]) -> Launch:
        """One process; its configuration is written anew."""
        configuration = folder / "jaeger.json"
        configuration.write_text(json.dumps(_configuration(ports), indent=1))
        return Launch(command=(str(programs / "jaeger"), "--config", f"file:{configuration}"))

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Whether its parts run and queries are answered."""
        return health.answers_http(ports["health"], "/status") and health.answers_http(ports["query"], "/api/services")

    def settings(self, ports: Mapping[str, int]) -> Mapping[str, str]:
        """Where spans go, and where people look at them."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports['otlp_http']}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "DISTROML_JAEGER_UI": f"http://127.0.0.1:{ports['query']}",
        }


def _configuration(ports: Mapping[str, int]) -> dict[str, object]:
    def at(name: str) -> dict[str, str]:
        return {"endpoint": f"127.0.0.1:{ports[name]}"}

    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
            "pipelines": {
                "traces": {
                    "receivers": ["otlp", "jaeger"],
                    "processors": ["batch"],
                    "exporters": ["jaeger_storage_exporter"],
                }
            },
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "healthcheckv2": {"use_v2": True, "http": at("health")},
            "jaeger_query": {"storage": {"traces": "memory"}, "http": at("query"), "grpc": at("query_grpc")},
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": _MAX_TRACES}}}},
        },
        "receivers": {
            "otlp": {"protocols": {"grpc": at("otlp_grpc"), "http": at("otlp_http")}},
            "jaeger": {"protocols": {"thrift_http": at("thrift_http"), "thrift_compact": at("thrift_udp")}},
        },
        "processors": {"batch": {"timeout": "200ms"}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
