"""Another server behind our doors: calls to it by HTTP, and the decision when a request is sent there."""
