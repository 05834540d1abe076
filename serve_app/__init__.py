"""The Ray Serve applications of an edge node, and their HTTP protocol."""
