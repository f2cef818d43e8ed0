"""What an operator sees DistroML by: Prometheus' configuration and rules, and Grafana's dashboards."""
