"""The clerk: sees batches through and delivers webhooks."""
