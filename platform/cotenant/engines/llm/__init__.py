"""Language models on vLLM: where a model comes from, how its engine is sized, how a call is answered."""
