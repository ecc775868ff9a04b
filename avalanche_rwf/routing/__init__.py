"""The method: free-energy retrieval, the routing layer and the routed transformer."""
