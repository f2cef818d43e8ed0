"""What the relay decides about its log without looking anywhere: pure."""
