"""Read models, training metrics and the live dashboard. Owns no stream."""
