"""The engine room: one training loop, and what it needs to run anywhere and to continue exactly."""
