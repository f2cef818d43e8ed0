"""The rendezvous service."""
