"""Between the domain and the outside: stored forms, and the messages of the contract."""
