"""The desk: OpenAI's files and batches, and single jobs, as the gateway and the command line ask for them."""
