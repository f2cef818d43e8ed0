"""Containers: what images are built from and with which engine; standard library and PyYAML only."""
