"""The Grafana dashboards of config/grafana, built with Grafana's own SDK; development only, the daemon never imports it."""
