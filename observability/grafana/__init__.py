"""Grafana's dashboards as code; `python -m observability.grafana` writes them as the JSON that Grafana is given."""
