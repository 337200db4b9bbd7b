"""HTTP calls that we make to servers of others: pictures by URL, and webhooks.

addresses  which hosts are inside, by address and by name          client    the one guarded way out
webhooks   signing, verifying, when to try again; pure              delivery  which URLs take webhooks, and the POST
"""
