"""What Lictor uses of python-consul2, and of py-consul, its successor with the same import name."""
