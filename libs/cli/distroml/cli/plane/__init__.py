"""The embedded control plane: its data folder and the supervisor that keeps its services running."""
