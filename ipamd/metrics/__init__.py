"""Prometheus metrics: `collector` reads the daemon's state at each scrape, `server` serves it. Nothing is counted
here; the parts keep their own counts.
"""
