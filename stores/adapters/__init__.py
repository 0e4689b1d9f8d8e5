"""Any of our stores in another framework's interface."""
