"""Elasticsearch 9 behind the port, and the way there: data streams, their template, shipping and retention."""

from distroml.logstore.elastic.client import check_server, clock_s, connect
from distroml.logstore.elastic.search import ElasticLogSearch
from distroml.logstore.elastic.shipper import Shipper
from distroml.logstore.elastic.upkeep import Upkeep

__all__ = ["ElasticLogSearch", "Shipper", "Upkeep", "check_server", "clock_s", "connect"]
