"""What two adapters differ in."""
