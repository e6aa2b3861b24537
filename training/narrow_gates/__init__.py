"""What makes a gate narrow?  A grid of small models around one base, each with one thing changed."""
