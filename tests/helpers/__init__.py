"""What more than one test needs; nothing here is a test."""
