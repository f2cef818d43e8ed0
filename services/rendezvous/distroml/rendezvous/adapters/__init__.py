"""Between the domain and the outside: stored forms, messages, leases."""
