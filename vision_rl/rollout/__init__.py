"""Agent Lightning's side: store, runners, workers, and the proxy between agents and model servers."""
