"""The store's edge: objects, where each thing lies among them, results, and the small records beside them."""
