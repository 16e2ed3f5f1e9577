"""What position does in a model, computed exactly: `locant explain`."""
