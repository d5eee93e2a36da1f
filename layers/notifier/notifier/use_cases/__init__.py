"""What the functions do, one module each. They name what they need as Protocols."""
