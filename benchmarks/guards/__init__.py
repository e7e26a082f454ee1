"""What the guards of tests/guards found at full size, as a page."""
