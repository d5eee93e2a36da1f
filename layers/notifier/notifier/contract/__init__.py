"""What producers may put on the requests queue: model, rules, reading a body, its problems."""
