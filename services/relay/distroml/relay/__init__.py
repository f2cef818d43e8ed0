"""Brings what was committed in etcd into JetStream and into sealed segments."""
