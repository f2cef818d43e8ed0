"""The `distroml` command: one file per noun, everything over gRPC but what must run locally."""
