"""The registry push: a module that registers by HTTP with Lictor itself."""
