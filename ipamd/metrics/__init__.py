"""What Prometheus reads: `collector` puts the daemon's state into its words, `server` serves them. Nothing is
counted here; the parts that know keep their own counts, and a scrape reads them."""
