"""What a training costs, and what it gives for that: the command `cost`."""
