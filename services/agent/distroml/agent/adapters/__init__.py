"""What the policies meet: processes, files, sockets and the other services."""
