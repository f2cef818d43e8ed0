"""The scheduler: jobs, attempts, nodes, the queue, and the ledger of who holds which slot."""
